#include "node/config/config.h"

namespace vremote::node {

std::string_view config_example() {
  return R"(# node.toml: one node of a VRemote Storage cluster. Paths are absolute. Start it with:
#   vremote node --config /etc/vremote/node.toml

node = "node1"              # this node's name, its own in the cluster: 1 to 63 of A-Z a-z 0-9 . _ -
mount = "/vremote"          # where /vremote/<export>/... appears; an empty directory that exists
#mount_suid = true          # set-user-ID programs and file capabilities count there; without it the mount is nosuid
state_dir = "/run/vremote"  # control socket and the like; one per node
#recovery_dir = "/var/lib/vremote/recovery"  # what could not be flushed; by default this, with another state_dir <state_dir>/recovery
listen = "0.0.0.0:1104"     # or "[::]:1104"; the port is 1104 unless given
#loops = 2                  # event loops; by default the number of processors, at most 4

[cluster]
name = "vremote"                    # nodes of other clusters are refused
#key = "/etc/vremote/cluster.key"   # by default cluster.key beside this file: `vremote cluster init` or `join` makes it
#tls = "off"                        # between nodes: "on" unless given; "off" needs no key and protects nothing

#[control]
#socket = "/run/vremote/control.sock"  # by default <state_dir>/control.sock
#mode = "0666"      # who may ask the node (status, vremote run, libvremote): all; "0660" the group, "0600" only root
#group = "vremote"  # the socket's group; with it the mode is "0660" unless given

[log]
#file = "/var/log/vremote.log"  # by default standard error
level = "info"                  # trace, debug, info, warn, error

[cache]
dirty_max_mib = 256    # written and not yet at its origin: beyond it, writers wait for the flush
flush_after_ms = 1000  # written data goes to its origin after so long
readahead_kib = 1024   # the kernel's readahead window on the mount: a multiple of 4, at most 1024

[guardian]
restart_wait_s = 60  # a mount whose daemon has died waits so long for the next one before it ends

[lease]
term_ms = 10000             # a node that is not heard of for so long loses what others need
#grace_ms = 0               # after a restart: how long nodes may claim what they had; 0: the term
recall_warn_ms = 5000       # a node that does not give back what it is asked for is reported
recall_deadline_ms = 60000  # and put out, when it makes no progress for so long
soft_timeout_ms = 0         # calls on this mount that wait longer for an origin fail with EIO; 0: they wait
#max = 0                    # leases that nodes may have of this one's exports; 0: one for each 16 KiB of memory

# The local directories this node shares; it is their origin. Each file may belong to one export only; names are unique in the cluster.
#[[export]]
#name = "data"          # appears as <mount>/data on every node
#path = "/srv/data"
#read = ["node2", "node3"]  # the other nodes that may read it; all unless given
#write = ["node2"]          # and those that may write it; all that may read unless given
#read_only = true           # nobody writes, through this node's mount neither
#root_squash = true         # root of other nodes is nobody here: anonymous_uid and anonymous_gid, 65534 unless given

# Every other node of the cluster.
#[[peer]]
#name = "node2"
#address = "10.0.0.2:1104"
)";
}

}  // namespace vremote::node
