#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace vremote {

void check_failed(const char* expression, const char* file, int line, const char* why) {
  std::fprintf(stderr, "vremote: internal error: %s:%d: rule broken: %s%s%s\n", file, line,
               expression, *why != '\0' ? ": " : "", why);
  std::fflush(stderr);
  std::abort();
}

}  // namespace vremote
