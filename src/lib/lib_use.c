/* A C program that uses libvremote as an installed one would: lib_use open|resolve PATH FLAGS
 * [MODE] */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vremote/fcntl.h>

int main(int argc, char** argv) {
  char text[4096];
  if (argc < 4) return 2;
  int flags = (int)strtol(argv[3], NULL, 0);
  if (strcmp(argv[1], "resolve") == 0) {
    if (vremote_resolve(argv[2], flags, text, sizeof text) >= 0) {
      puts(text);
      return 0;
    }
    printf("error %s: %s\n", strerrorname_np(errno), vremote_reason());
    return 1;
  }
  int fd = argc > 4 ? vremote_open(argv[2], flags, (mode_t)strtol(argv[4], NULL, 8))
                    : vremote_openat(AT_FDCWD, argv[2], flags);
  if (fd < 0) {
    printf("error %s: %s\n", strerrorname_np(errno), vremote_reason());
    return 1;
  }
  ssize_t n = read(fd, text, sizeof text);
  printf("%.*s", n < 0 ? 0 : (int)n, text);
  return 0;
}
