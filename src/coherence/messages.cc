#include "coherence/messages.h"

#include "base/overload.h"

namespace vremote::coherence {
FileId file_of(const Operation& operation) {
  return std::visit(Overload{
                        [](const LookupCall& c) { return c.dir; },
                        [](const CreateCall& c) { return c.dir; },
                        [](const SymlinkCall& c) { return c.dir; },
                        [](const LinkCall& c) { return c.dir; },
                        [](const RemoveCall& c) { return c.dir; },
                        [](const RenameCall& c) { return c.from_dir; },
                        [](const ReadDirectoryCall& c) { return c.dir; },
                        [](const auto& c) { return c.file; },
                    },
                    operation);
}

FileId file_of(const ToHome& message) {
  return std::visit(Overload{
                        [](const Call& c) { return file_of(c.operation); },
                        [](const auto& m) { return m.file; },
                    },
                    message);
}

}  // namespace vremote::coherence
