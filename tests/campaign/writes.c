/* Counts what a process does to files, and stops it, or says that the disk is full, at a chosen count.
 *
 * Preloaded (LD_PRELOAD), so that it sees writes of Python, HDF5, Pillow and Rust alike; and connections.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT = 0, KILL_SELF = 1, KILL_GROUP = 2, FULL = 3 };

static long changes = 0, additions = 0, target = 0;
static int action = COUNT;

/* `at` is the first change that is acted on, from 1; 0 only counts. */
void campaign_arm(long at, int what) { changes = additions = 0; target = at; action = what; }
long campaign_changes(void) { return changes; }
long campaign_additions(void) { return additions; }

#define REAL(name, type) \
  static type real = NULL; \
  if (!real) real = (type)dlsym(RTLD_NEXT, name)

static void die(void) { kill(action == KILL_GROUP ? 0 : getpid(), SIGKILL); for (;;) pause(); }

/* Whether it is the change at which this process is to die. */
static int fatal(void) {
  long now = __atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST);
  return target && now == target && (action == KILL_SELF || action == KILL_GROUP);
}

/* Whether there is no room for what is added now, and for anything after it. */
static int full(void) {
  long now = __atomic_add_fetch(&additions, 1, __ATOMIC_SEQ_CST);
  return target && action == FULL && now >= target;
}

static int is_file(int fd) {
  struct stat facts;
  int before = errno, regular = fd > 2 && fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode);
  errno = before;
  return regular;
}

typedef ssize_t (*write_t)(int, const void *, size_t);
typedef ssize_t (*pwrite_t)(int, const void *, size_t, off_t);
typedef ssize_t (*writev_t)(int, const struct iovec *, int);
typedef int (*path_t)(const char *);
typedef int (*two_t)(const char *, const char *);
typedef int (*fd_t)(int);

ssize_t write(int fd, const void *data, size_t size) {
  REAL("write", write_t);
  if (!is_file(fd)) return real(fd, data, size);
  if (full()) { errno = ENOSPC; return -1; }
  if (fatal()) { real(fd, data, size / 2); die(); }
  return real(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  REAL("pwrite", pwrite_t);
  if (!is_file(fd)) return real(fd, data, size, at);
  if (full()) { errno = ENOSPC; return -1; }
  if (fatal()) { real(fd, data, size / 2, at); die(); }
  return real(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return pwrite(fd, data, size, at); }

ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL("writev", writev_t);
  if (!is_file(fd)) return real(fd, parts, count);
  if (full()) { errno = ENOSPC; return -1; }
  if (fatal()) { real(fd, parts, count / 2); die(); }
  return real(fd, parts, count);
}

int fsync(int fd) { REAL("fsync", fd_t); if (fatal()) die(); return real(fd); }

int rename(const char *from, const char *to) {
  REAL("rename", two_t);
  if (fatal()) die();
  return real(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
  typedef int (*renameat_t)(int, const char *, int, const char *);
  REAL("renameat", renameat_t);
  if (fatal()) die();
  return real(a, from, b, to);
}

int unlink(const char *path) { REAL("unlink", path_t); if (fatal()) die(); return real(path); }
int rmdir(const char *path) { REAL("rmdir", path_t); if (fatal()) die(); return real(path); }

int unlinkat(int fd, const char *path, int flags) {
  typedef int (*unlinkat_t)(int, const char *, int);
  REAL("unlinkat", unlinkat_t);
  if (fatal()) die();
  return real(fd, path, flags);
}

int mkdir(const char *path, mode_t mode) {
  typedef int (*mkdir_t)(const char *, mode_t);
  REAL("mkdir", mkdir_t);
  if (full()) { errno = ENOSPC; return -1; }
  if (fatal()) die();
  return real(path, mode);
}

/* A connection to another machine: said, and refused as it is on a machine without a network. */
int connect(int fd, const struct sockaddr *to, socklen_t size) {
  typedef int (*connect_t)(int, const struct sockaddr *, socklen_t);
  REAL("connect", connect_t);
  static const char said[] = "campaign: reached for the network\n";
  int away = to->sa_family == AF_INET && (ntohl(((const struct sockaddr_in *)to)->sin_addr.s_addr) >> 24) != 127;
  if (to->sa_family == AF_INET6) {
    const struct in6_addr *address = &((const struct sockaddr_in6 *)to)->sin6_addr;
    away = !IN6_IS_ADDR_LOOPBACK(address) && !(IN6_IS_ADDR_V4MAPPED(address) && address->s6_addr[12] == 127);
  }
  if (!away) return real(fd, to, size);
  if (write(2, said, sizeof said - 1)) errno = ENETUNREACH;
  return -1;
}

/* A file that is opened to be written: a change, as it may be made or emptied by that. */
static int opens(const char *name, int folder, const char *path, int flags, mode_t mode) {
  typedef int (*openat_t)(int, const char *, int, ...);
  REAL("openat", openat_t);
  struct stat facts;
  int before = errno;
  int special = stat(path, &facts) == 0 && !S_ISREG(facts.st_mode); /* such as /dev/null */
  errno = before;
  if ((flags & O_CREAT) && !special) {
    if (full()) { errno = ENOSPC; return -1; }
    if (fatal()) die();
  }
  (void)name;
  return real(folder, path, flags, mode);
}

#define MODE(last) \
  mode_t mode = 0; \
  if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, last); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) { MODE(flags) return opens("open", AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) {
  MODE(flags) return opens("open64", AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return opens("openat", folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) {
  MODE(flags) return opens("openat64", folder, path, flags | O_LARGEFILE, mode);
}
