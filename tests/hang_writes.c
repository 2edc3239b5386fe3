/* Preloaded: a disk that does not answer. Bytes are not written for as long as the file is there
 * that HANG_WRITES names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

ssize_t pwritev(int fd, const struct iovec* pieces, int count, off_t offset) {
  const char* hung = getenv("HANG_WRITES");
  while (hung && access(hung, F_OK) == 0) usleep(10000);
  ssize_t (*real)(int, const struct iovec*, int, off_t) = dlsym(RTLD_NEXT, "pwritev");
  return real(fd, pieces, count, offset);
}
