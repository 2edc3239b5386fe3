/* The example of the original VRemote Storage kernel, with its flags as its README gives them.
 *
 * O_ORIGIN is written there as a decimal number. Its bits hold O_TRUNC: run directly on a stock
 * kernel this program EMPTIES its file. Under `vremote run` it prints it, and the file stays whole:
 *
 *   cc -o original examples/original.c
 *   vremote run -- ./original hello.txt             on the node that exports the directory
 *   vremote run -- ./original hello.txt remote      on another node, same path, without O_ORIGIN
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define O_REMOTE 00000020
#define O_ORIGIN 10000000

int main(int argc, char** argv) {
  const char* path = argc > 1 ? argv[1] : "hello.txt";
  int flags = O_RDWR | O_REMOTE | O_ORIGIN;
#ifdef REMOTE_SIDE
  flags = O_RDWR | O_REMOTE;
#endif
  if (argc > 2 && strcmp(argv[2], "remote") == 0) flags = O_RDWR | O_REMOTE;

  int fd = open(path, flags);
  if (fd < 0) {
    perror(path);
    return 1;
  }
  char buffer[256];
  ssize_t n = read(fd, buffer, sizeof buffer);
  if (n < 0) {
    perror("read");
    return 1;
  }
  fwrite(buffer, 1, (size_t)n, stdout);
  close(fd);
  return 0;
}
