/* Preloaded: a disk that fails. For as long as the file is there that HANG_WRITES names, bytes are
 * not written; while the one of REFUSE_SYNCS is, fsync(2) says EIO of files below the directory
 * BAD_DISK. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_there(const char* variable) {
  const char* path = getenv(variable);
  return path && access(path, F_OK) == 0;
}

static int is_on_it(int fd) {
  const char* disk = getenv("BAD_DISK");
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (!disk || n < 0) return 0;
  path[n] = 0;
  return strncmp(path, disk, strlen(disk)) == 0;
}

ssize_t pwritev(int fd, const struct iovec* pieces, int count, off_t offset) {
  while (is_there("HANG_WRITES")) usleep(10000);
  ssize_t (*real)(int, const struct iovec*, int, off_t) = dlsym(RTLD_NEXT, "pwritev");
  return real(fd, pieces, count, offset);
}

static int sync_or_refuse(const char* name, int fd) {
  int (*real)(int) = dlsym(RTLD_NEXT, name);
  if (!is_there("REFUSE_SYNCS") || !is_on_it(fd)) return real(fd);
  errno = EIO;
  return -1;
}
int fsync(int fd) { return sync_or_refuse("fsync", fd); }
int fdatasync(int fd) { return sync_or_refuse("fdatasync", fd); }
