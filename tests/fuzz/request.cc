#include "fuse/request.h"

#include <cerrno>
#include <variant>

#include "base/check.h"
#include "fuzz/targets.h"

namespace vremote::fuzz {
namespace {

// Views must lie inside the buffer, and names are names.
class Views {
 public:
  explicit Views(std::span<const std::byte> buffer) : buffer_(buffer) {}

  void bytes(std::span<const std::byte> view) const {
    if (view.empty()) return;
    VR_CHECK(view.data() >= buffer_.data() &&
             view.data() + view.size() <= buffer_.data() + buffer_.size());
  }
  void text(std::string_view view) const {
    bytes(std::as_bytes(std::span(view)));
    VR_CHECK(view.find('\0') == std::string_view::npos);
  }
  void name(std::string_view view) const {
    text(view);
    VR_CHECK(!view.empty());
  }

 private:
  std::span<const std::byte> buffer_;
};

}  // namespace

void request(std::span<const std::byte> bytes) {
  const Exact exact(bytes);
  const auto header = fuse::decode_header(exact.view());
  const auto decoded = fuse::decode(exact.view());
  if (!decoded) {
    VR_CHECK(decoded.error().code == EPROTO);
    return;
  }
  VR_CHECK(header && header->wire_unique() == decoded->header.wire_unique());
  const Views views(exact.view());
  std::visit(
      [&](const auto& body) {
        if constexpr (requires { body.name; }) views.name(body.name);
        if constexpr (requires { body.new_name; }) views.name(body.new_name);
        if constexpr (requires { body.target; }) views.text(body.target);
        if constexpr (requires { body.payload; }) views.bytes(body.payload);
        if constexpr (requires { body.value; }) views.bytes(body.value);
        if constexpr (requires { body.input; }) views.bytes(body.input);
      },
      decoded->body);
}

}  // namespace vremote::fuzz
