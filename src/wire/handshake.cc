#include "wire/handshake.h"

#include "wire/convert.h"

namespace vremote::wire {
namespace {

// A cluster, node or export name: one path component, also in logs and in status output.
bool valid_label(std::string_view s) {
  if (!valid_name(s)) return false;
  for (unsigned char c : s)
    if (c < 0x20 || c == 0x7f) return false;
  return true;
}
bool valid_home(std::string_view s) { return s.empty() || valid_label(s); }
constexpr size_t kTextMax = 1024;

bool valid_export_path(std::string_view s) {
  return s.empty() ||
         (s.front() == '/' && s.size() <= kExportPathMax && s.find('\0') == std::string_view::npos);
}
std::string_view optional_view(const flatbuffers::String* s) {
  return s == nullptr ? std::string_view() : view_of(s);
}

}  // namespace

const char* to_string(RefuseReason reason) {
  switch (reason) {
    case RefuseReason::Version:
      return "protocol version";
    case RefuseReason::Cluster:
      return "another cluster";
    case RefuseReason::SessionUnknown:
      return "session unknown";
    case RefuseReason::BadHello:
      return "bad hello";
    case RefuseReason::Busy:
      return "busy";
    case RefuseReason::NameTaken:
      return "name taken";
    case RefuseReason::WrongNode:
      return "wrong node";
    case RefuseReason::NotEncrypted:
      return "not encrypted";
  }
  return "unknown reason";
}

Result<Encoded> encode(const Hello& m) {
  if (!valid_label(m.cluster) || !valid_label(m.node_name) || !valid_home(m.home_name))
    return fail(EINVAL, "bad cluster or node name");
  if (m.lanes == 0 || m.lanes > kLanesMax || m.lane >= m.lanes || m.received > kSequenceMax)
    return fail(EINVAL, "bad lane in a hello");
  flatbuffers::FlatBufferBuilder b(512);
  BulkWriter bulk;
  auto cluster = b.CreateString(m.cluster);
  auto node_name = b.CreateString(m.node_name);
  auto home_name = b.CreateString(m.home_name);
  b.Finish(fb::CreateHello(b, m.version, m.features, cluster, node_name, m.incarnation,
                           m.session_epoch, m.resume, m.lane, m.lanes, m.received, home_name));
  return finish(FrameType::Hello, b, bulk);
}

Result<Hello> decode_hello(std::span<const std::byte> header) {
  Root<fb::Hello> root(header);
  if (!root) return malformed("malformed hello");
  Hello m{.version = root->version(),
          .features = root->features(),
          .cluster = root->cluster()->str(),
          .node_name = root->node_name()->str(),
          .incarnation = root->incarnation(),
          .session_epoch = root->session_epoch(),
          .resume = root->resume(),
          .lane = root->lane(),
          .lanes = root->lanes(),
          .received = root->received(),
          .home_name = std::string(optional_view(root->home_name()))};
  if (!valid_label(m.cluster) || !valid_label(m.node_name) || !valid_home(m.home_name))
    return malformed("bad cluster or node name in a hello");
  if (m.lanes == 0 || m.lanes > kLanesMax || m.lane >= m.lanes || m.received > kSequenceMax)
    return malformed("bad lane in a hello");
  return m;
}

Result<Encoded> encode(const Welcome& m) {
  if (!valid_label(m.node_name)) return fail(EINVAL, "bad node name");
  if (m.exports.size() > kExportsMax) return fail(EMSGSIZE, "too many exports");
  if (m.received > kSequenceMax) return fail(EINVAL, "bad sequence in a welcome");
  flatbuffers::FlatBufferBuilder b(512);
  BulkWriter bulk;
  std::vector<flatbuffers::Offset<fb::Export>> exports;
  exports.reserve(m.exports.size());
  for (const Export& e : m.exports) {
    if (!valid_label(e.name)) return fail(EINVAL, "bad export name");
    auto name = b.CreateString(e.name);
    if (!valid_export_path(e.path)) return fail(EINVAL, "bad export path");
    auto root = to_fb(e.root);
    auto path = b.CreateString(e.path);
    exports.push_back(fb::CreateExport(b, name, e.export_index, &root, e.read_only, path));
  }
  auto list = b.CreateVector(exports);
  auto node_name = b.CreateString(m.node_name);
  b.Finish(fb::CreateWelcome(b, m.version, m.features, node_name, m.incarnation, m.session,
                             m.resumed, m.received, m.lease_term_ms, list, m.may_reclaim,
                             m.disk_life, m.newer_key));
  if (b.GetSize() > kHandshakeHeaderMax) return fail(EMSGSIZE, "welcome too long");
  return finish(FrameType::Welcome, b, bulk);
}

Result<Welcome> decode_welcome(std::span<const std::byte> header) {
  Root<fb::Welcome> root(header);
  if (!root) return malformed("malformed welcome");
  Welcome m{.version = root->version(),
            .features = root->features(),
            .node_name = root->node_name()->str(),
            .incarnation = root->incarnation(),
            .session = root->session(),
            .resumed = root->resumed(),
            .received = root->received(),
            .lease_term_ms = root->lease_term_ms(),
            .exports = {},
            .may_reclaim = root->may_reclaim(),
            .disk_life = root->disk_life(),
            .newer_key = root->newer_key()};
  if (!valid_label(m.node_name)) return malformed("bad node name in a welcome");
  if (m.received > kSequenceMax) return malformed("bad sequence in a welcome");
  if (root->exports() != nullptr) {
    if (root->exports()->size() > kExportsMax) return malformed("too many exports");
    for (const fb::Export* e : *root->exports()) {
      if (!valid_label(view_of(e->name()))) return malformed("bad export name in a welcome");
      if (!valid_export_path(optional_view(e->path())))
        return malformed("bad export path in a welcome");
      m.exports.push_back({.name = e->name()->str(),
                           .export_index = e->export_index(),
                           .root = from_fb(*e->root()),
                           .read_only = e->read_only(),
                           .path = std::string(optional_view(e->path()))});
    }
  }
  return m;
}

Result<Encoded> encode(const Refuse& m) {
  flatbuffers::FlatBufferBuilder b(256);
  BulkWriter bulk;
  auto text = b.CreateString(m.text.data(), std::min(m.text.size(), kTextMax));
  b.Finish(fb::CreateRefuse(b, static_cast<uint8_t>(m.reason), text));
  return finish(FrameType::Refuse, b, bulk);
}

Result<Refuse> decode_refuse(std::span<const std::byte> header) {
  Root<fb::Refuse> root(header);
  if (!root || root->reason() > static_cast<uint8_t>(RefuseReason::NotEncrypted))
    return malformed("malformed refusal");
  Refuse m{.reason = RefuseReason{root->reason()}, .text = {}};
  if (root->text() != nullptr) {
    if (root->text()->size() > kTextMax) return malformed("refusal too long");
    m.text = root->text()->str();
    // It goes to a log: no control characters from a stranger.
    for (char& c : m.text)
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return m;
}

}  // namespace vremote::wire
