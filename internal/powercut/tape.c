// Takes the place of the C library's functions in this program. Go's own writes do not
// come through here: its runtime makes system calls by itself.

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tape.h"

static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static int on;
static unsigned long long dev, ino;
static struct tape_event *events;
static size_t count, room;
static int failed; // an event was lost for lack of memory

void tape_start(unsigned long long d, unsigned long long i) {
	pthread_mutex_lock(&mu);
	dev = d, ino = i, on = 1, failed = 0;
	pthread_mutex_unlock(&mu);
}

// tape_stop ends the recording and hands it over.
int tape_stop(struct tape_event **out, size_t *n) {
	pthread_mutex_lock(&mu);
	on = 0;
	*out = events, *n = count;
	events = NULL, count = room = 0;
	int bad = failed;
	pthread_mutex_unlock(&mu);
	return bad;
}

size_t tape_count(void) {
	pthread_mutex_lock(&mu);
	size_t n = count;
	pthread_mutex_unlock(&mu);
	return n;
}

static int recorded(int fd) {
	struct stat st;
	return on && fstat(fd, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

// note adds an event. mu is held.
static void note(struct tape_event e) {
	if (count == room) {
		size_t more = room ? 2 * room : 1024;
		struct tape_event *grown = realloc(events, more * sizeof *grown);
		if (!grown) {
			failed = 1;
			free(e.data);
			return;
		}
		events = grown, room = more;
	}
	events[count++] = e;
}

// wrote notes n bytes that were written at off. mu is held.
static void wrote(int fd, const struct iovec *iov, ssize_t n, off_t off) {
	if (n <= 0 || !recorded(fd))
		return;
	int flags = fcntl(fd, F_GETFL);
	struct tape_event e = {.off = off, .len = n, .synced = (flags & O_DSYNC) != 0, .data = malloc(n)};
	if (!e.data) {
		failed = 1;
		return;
	}
	for (size_t done = 0; done < (size_t)n; iov++) {
		size_t part = iov->iov_len < n - done ? iov->iov_len : n - done;
		memcpy(e.data + done, iov->iov_base, part);
		done += part;
	}
	note(e);
}

// The lock is held around the call, so that the order of events is the order of calls.

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off) {
	pthread_mutex_lock(&mu);
	ssize_t n = syscall(SYS_pwrite64, fd, buf, len, off);
	struct iovec iov = {(void *)buf, len};
	wrote(fd, &iov, n, off);
	pthread_mutex_unlock(&mu);
	return n;
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off_t off) { return pwrite(fd, buf, len, off); }

ssize_t pwritev(int fd, const struct iovec *iov, int parts, off_t off) {
	pthread_mutex_lock(&mu);
	ssize_t n = syscall(SYS_pwritev, fd, iov, parts, off, 0L);
	wrote(fd, iov, n, off);
	pthread_mutex_unlock(&mu);
	return n;
}

ssize_t writev(int fd, const struct iovec *iov, int parts) {
	pthread_mutex_lock(&mu);
	ssize_t n = syscall(SYS_writev, fd, iov, parts);
	if (n > 0)
		wrote(fd, iov, n, lseek(fd, 0, SEEK_CUR) - n);
	pthread_mutex_unlock(&mu);
	return n;
}

static int synced(int fd, long call) {
	pthread_mutex_lock(&mu);
	int r = syscall(call, fd);
	if (r == 0 && recorded(fd))
		note((struct tape_event){.off = -1});
	pthread_mutex_unlock(&mu);
	return r;
}

int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }
int fsync(int fd) { return synced(fd, SYS_fsync); }
