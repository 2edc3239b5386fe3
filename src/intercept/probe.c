/* The program the tests run under the supervisor. Its arguments are steps, "word=value", done in
 * order; each open prints one line: "CONTENT" (the file's first line, "-" when it is empty or not
 * readable) or "error NAME". Plain C, also linked statically. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static int flags = O_RDONLY;
static int mode = 0600;
static int directory = AT_FDCWD;
static int last = -1;
static volatile sig_atomic_t ticks;

static void say(const char* line) {
  char whole[600];
  int n = snprintf(whole, sizeof whole, "%s\n", line);
  if (write(1, whole, (size_t)n) != n) _exit(99);
}

static void report(int fd) {
  char text[256];
  if (fd < 0) {
    snprintf(text, sizeof text, "error %s", strerrorname_np(errno));
    say(text);
    return;
  }
  last = fd;
  ssize_t n = -1;
  if ((flags & (O_ACCMODE | O_PATH)) != O_WRONLY) n = read(fd, text, sizeof text - 1);
  if (n < 0) n = 0;
  text[n] = 0;
  text[strcspn(text, "\n")] = 0;
  say(*text ? text : "-");
}

static void* open_in_thread(void* path) {
  report(openat(directory, path, flags, mode));
  return NULL;
}

static void* write_after_a_while(void* path) {
  usleep(200000);
  int fd = open(path, O_WRONLY | 020);
  if (fd < 0 || write(fd, "through the pipe\n", 17) != 17) _exit(98);
  close(fd);
  return NULL;
}

static void on_tick(int s) {
  (void)s;
  ticks++;
}
static void on_term(int s) {
  (void)s;
  _exit(42);
}
static void on_fault(int s) {
  (void)s;
  say("no i386");
  _exit(0);
}

#ifdef __x86_64__
static int open_i386(const char* path) {
  char* low =
      mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  if (low == MAP_FAILED) _exit(97);
  strcpy(low, path);
  signal(SIGSEGV, on_fault);
  signal(SIGILL, on_fault);
  long result;
  __asm__ volatile("int $0x80"
                   : "=a"(result)
                   : "a"(5), "b"(low), "c"(flags), "d"(mode)
                   : "memory", "r8", "r9", "r10", "r11");
  int fd = (int)result;
  if (fd < 0) errno = -fd;
  return fd < 0 ? -1 : fd;
}
#endif

/* Whether a thread of process `pid` is inside system call `number` now. */
static int is_inside(int pid, int number) {
  for (int tid = pid; tid < pid + 200; ++tid) {
    char path[64], text[64] = "";
    snprintf(path, sizeof path, "/proc/%d/task/%d/syscall", pid, tid);
    int fd = open(path, O_RDONLY);
    if (fd < 0) continue;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n > 0 && atoi(text) == number) return 1;
  }
  return 0;
}

static void abandon(const char* path) {
  int pid = fork();
  if (pid == 0) {
    open(path, O_RDONLY | 020);
    _exit(0);
  }
  for (int i = 0; !is_inside(getppid(), SYS_openat2); ++i) {
    if (i == 10000) _exit(96);
    usleep(1000);
  }
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  for (int i = 0; i < 10000; ++i) {
    if (!is_inside(getppid(), SYS_openat2)) {
      say("interrupted");
      return;
    }
    usleep(1000);
  }
  say("still inside");
}

/* Opens under a timer of 1 kHz: first one that takes 200 ms, then many quick ones. */
static void storm(const char* path, const char* quick) {
  pthread_t writer;
  sigset_t alarm;
  sigemptyset(&alarm);
  sigaddset(&alarm, SIGALRM);
  sigprocmask(SIG_BLOCK, &alarm,
              NULL); /* the writer inherits that: all ticks hit the thread that opens */
  pthread_create(&writer, NULL, write_after_a_while, (void*)path);
  struct sigaction action = {.sa_handler = on_tick, .sa_flags = SA_RESTART};
  sigaction(SIGALRM, &action, NULL);
  sigprocmask(SIG_UNBLOCK, &alarm, NULL);
  struct itimerval fast = {{0, 1000}, {0, 1000}}, off = {{0, 0}, {0, 0}};
  setitimer(ITIMER_REAL, &fast, NULL);
  int fd = open(path, O_RDONLY | 020);
  pthread_join(writer, NULL);
  int before = ticks;
  for (int i = 0; i < 300 || ticks < before + 20; ++i) {
    int again = open(quick, O_RDONLY | 020);
    if (again < 0) report(again);
    close(again);
  }
  setitimer(ITIMER_REAL, &off, NULL);
  report(fd);
}

static const char* hammered;
static atomic_int hammering = 1, wrong;

static void* hammer_in_thread(void* unused) {
  (void)unused;
  for (int i = 0; i < 500; ++i) {
    char c;
    int fd = open(hammered, flags, mode);
    if (fd < 3 || read(fd, &c, 1) != 1) ++wrong;
    if (fd >= 3) close(fd);
  }
  return NULL;
}

/* Signals for every thread of our parent, the supervisor, which has a use of its own for them. */
static void* poke_in_thread(void* unused) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/task", getppid());
  while (hammering) {
    DIR* tasks = opendir(path);
    if (!tasks) break;
    for (struct dirent* task; (task = readdir(tasks));)
      if (task->d_name[0] != '.') syscall(SYS_tgkill, getppid(), atoi(task->d_name), SIGUSR1);
    closedir(tasks);
  }
  return unused;
}

/* Many opens of many threads, while the supervisor is interrupted all the time. */
static void hammer(const char* path) {
  pthread_t threads[17];
  char text[64];
  hammered = path;
  close(open(path, flags, mode)); /* answered: the supervisor is there, and so is its handler */
  pthread_create(&threads[16], NULL, poke_in_thread, NULL);
  for (int i = 0; i < 16; ++i) pthread_create(&threads[i], NULL, hammer_in_thread, NULL);
  for (int i = 0; i < 16; ++i) pthread_join(threads[i], NULL);
  hammering = 0;
  pthread_join(threads[16], NULL);
  snprintf(text, sizeof text, "%d wrong descriptors", (int)wrong);
  say(text);
}

/* A child that lives on without any of our descriptors, and opens when somebody writes to the FIFO
 * `go`. */
static void background(const char* go, const char* path, const char* out) {
  if (fork() != 0) return;
  close(0);
  close(1);
  close(2);
  if (open("/dev/null", O_RDWR) != 0 || open(go, O_RDONLY) != 1) _exit(95);
  if (dup2(open(out, O_WRONLY | O_CREAT | O_TRUNC, 0644), 1) != 1) _exit(95);
  report(open(path, flags, mode));
  _exit(0);
}

static void step(char** argv, char* word, char* value) {
  char text[64];
  if (!strcmp(word, "flags"))
    flags = (int)strtol(value, NULL, 0);
  else if (!strcmp(word, "mode"))
    mode = (int)strtol(value, NULL, 8);
  else if (!strcmp(word, "umask"))
    umask((mode_t)strtol(value, NULL, 8));
  else if (!strcmp(word, "open"))
    report(open(value, flags, mode));
  else if (!strcmp(word, "openat"))
    report(openat(directory, value, flags, mode));
  else if (!strcmp(word, "raw"))
    report((int)syscall(SYS_openat, directory, value, flags, mode));
#ifdef __x86_64__
  else if (!strcmp(word, "rawopen"))
    report((int)syscall(SYS_open, value, flags, mode));
  else if (!strcmp(word, "x32"))
    report((int)syscall(SYS_open | 0x40000000, value, flags, mode));
  else if (!strcmp(word, "i386"))
    report(open_i386(value));
#endif
  else if (!strcmp(word, "openat2")) {
    uint64_t how[3] = {(uint64_t)flags, 0, 0};
    report((int)syscall(SYS_openat2, directory, value, how, sizeof how));
  } else if (!strcmp(word, "badpointer"))
    report((int)syscall(SYS_openat, directory, (void*)8, flags, mode));
  else if (!strcmp(word, "dir"))
    directory = open(value, O_RDONLY | O_DIRECTORY);
  else if (!strcmp(word, "dirfd"))
    directory = atoi(value);
  else if (!strcmp(word, "chdir")) {
    if (chdir(value)) _exit(94);
  } else if (!strcmp(word, "rmdir"))
    rmdir(value);
  else if (!strcmp(word, "chroot")) {
    if (chroot(value) || chdir("/")) _exit(93);
  } else if (!strcmp(word, "unshare")) {
    if (unshare(CLONE_NEWNS)) _exit(92);
  } else if (!strcmp(word, "uid")) {
    uid_t id = (uid_t)atoi(value);
    if (setgroups(0, NULL) || setresgid(id, id, id) || setresuid(id, id, id)) _exit(91);
  } else if (!strcmp(word, "nofile")) {
    struct rlimit limit = {(rlim_t)atoi(value), (rlim_t)atoi(value)};
    setrlimit(RLIMIT_NOFILE, &limit);
  } else if (!strcmp(word, "thread")) {
    pthread_t thread;
    pthread_create(&thread, NULL, open_in_thread, value);
    pthread_join(thread, NULL);
  } else if (!strcmp(word, "threads")) {
    pthread_t threads[16];
    for (int i = 0; i < 16; ++i) pthread_create(&threads[i], NULL, open_in_thread, value);
    for (int i = 0; i < 16; ++i) pthread_join(threads[i], NULL);
  } else if (!strcmp(word, "hammer")) {
    hammer(value);
  } else if (!strcmp(word, "fork")) {
    if (fork() == 0) {
      report(open(value, flags, mode));
      _exit(0);
    }
    wait(NULL);
  } else if (!strcmp(word, "exec")) {
    char* next[] = {value, argv[1], argv[2], NULL};
    execv(value, next);
    _exit(90);
  } else if (!strcmp(word, "cloexec")) {
    snprintf(text, sizeof text, "cloexec %d", fcntl(last, F_GETFD));
    say(text);
  } else if (!strcmp(word, "access")) {
    snprintf(text, sizeof text, "access %#o",
             fcntl(last, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK));
    say(text);
  } else if (!strcmp(word, "uring")) {
    syscall(SYS_io_uring_setup, 0, NULL);
    say(strerrorname_np(errno));
  } else if (!strcmp(word, "abandon"))
    abandon(value);
  else if (!strcmp(word, "storm")) {
    char* quick = strchr(value, ',');
    *quick++ = 0;
    storm(value, quick);
  } else if (!strcmp(word, "background")) {
    char* path = strchr(value, ',');
    *path++ = 0;
    char* out = strchr(path, ',');
    *out++ = 0;
    background(value, path, out);
  } else if (!strcmp(word, "wait-term")) {
    signal(SIGTERM, on_term);
    say("ready");
    for (;;) pause();
  } else if (!strcmp(word, "mask")) {
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    snprintf(text, sizeof text, "blocked %d %d", sigismember(&now, SIGTERM),
             sigismember(&now, SIGINT));
    say(text);
  } else if (!strcmp(word, "kill"))
    raise(atoi(value));
  else if (!strcmp(word, "exit"))
    _exit(atoi(value));
  else
    _exit(89);
}

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    char* value = strchr(argv[i], '=');
    if (!value) return 88;
    *value++ = 0;
    step(argv + i, argv[i], value);
  }
  return 0;
}
