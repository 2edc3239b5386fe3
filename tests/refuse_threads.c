/* Preloaded: as a system that gives no thread any more, from the REFUSE_FROM-th that is asked for
 * on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*),
                   void* with) {
  static atomic_long asked;
  const char* from = getenv("REFUSE_FROM");
  if (from && atomic_fetch_add(&asked, 1) + 1 >= atol(from)) return EAGAIN;
  int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) =
      dlsym(RTLD_NEXT, "pthread_create");
  return real(thread, attributes, run, with);
}
