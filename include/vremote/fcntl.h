/* The open flags of VRemote Storage, and opens that honour them in programs that link libvremote.
 *
 * A stock kernel drops both flags silently. They work in two ways:
 *   - under `vremote run -- PROGRAM`, for every open() and openat() of any program;
 *   - with vremote_open() and vremote_openat() below, for programs linked with libvremote.
 */
#ifndef VREMOTE_FCNTL_H
#define VREMOTE_FCNTL_H

#include <fcntl.h>
#include <stddef.h>
#include <sys/types.h>

#if defined(__mips__) || defined(__alpha__) || defined(__sparc__) || defined(__hppa__)
#error "O_REMOTE and O_ORIGIN collide with other open flags on this architecture"
#endif

/* Whatever defined them before: a program written from the original project's README has O_ORIGIN
 * wrong, see below. */
#undef O_REMOTE
#undef O_ORIGIN

/* This file is shared: open it through the page cache that all nodes share. */
#define O_REMOTE 00000020
/* With O_REMOTE: the path names a file that belongs to this very node (it lies in a directory this
 * node exports). */
#define O_ORIGIN 00000010

/* The original project's README writes `#define O_ORIGIN 10000000`: a decimal number (0x989680)
 * whose bits are, on x86-64, those of O_TRUNC, O_APPEND, O_EXCL, O_SYNC, O_CLOEXEC and O_LARGEFILE,
 * so that a stock kernel empties the file. Together with O_REMOTE, `vremote run` and vremote_open()
 * take all these bits for O_ORIGIN and for nothing else. Do not use it in new programs. */
#define VREMOTE_O_ORIGIN_DECIMAL 10000000

#ifdef __cplusplus
extern "C" {
#endif

/* open(2) that honours O_REMOTE and O_ORIGIN; without O_REMOTE it is open(2). A mode_t follows when
 * flags have O_CREAT or O_TMPFILE.
 *
 * With O_ORIGIN the path must lie in an export of this node. Without it, it is the same path as on
 * the file's origin, or a path under the mount. The running node is asked for both through its
 * control socket: $VREMOTE_CONTROL, else `control.socket` of the file $VREMOTE_CONFIG, else
 * /run/vremote/control.sock.
 *
 * Returns a descriptor, or -1 with errno: that of open(2); ENXIO when the path is in no export or
 * no node runs here; EINVAL when it is on the other side than the flags say, or in several exports.
 * ENXIO and EINVAL also print one line on stderr that says how to mend it. Never opens a local file
 * instead. Thread-safe; not safe in signal handlers. */
int vremote_open(const char* path, int flags, ... /* mode_t mode */);

/* openat(2) in the same way. */
int vremote_openat(int dirfd, const char* path, int flags, ... /* mode_t mode */);

/* The path under the mount that vremote_open(path, flags) would open, written to buffer with its
 * final NUL. Returns its length without the NUL, or -1 with errno as above (ERANGE when size is too
 * small). Prints nothing; opens nothing. */
ssize_t vremote_resolve(const char* path, int flags, char* buffer, size_t size);

/* Why the last vremote_ call of this thread refused a path: a sentence, or "" when it did not.
 * Valid until the thread's next call. */
const char* vremote_reason(void);

#ifdef __cplusplus
}
#endif

#endif /* VREMOTE_FCNTL_H */
