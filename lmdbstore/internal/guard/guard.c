#define _GNU_SOURCE
#include "guard.h"
#include "inside.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

__thread sigjmp_buf *volatile qs_armed; // volatile: set and cleared around what may fault

// Why the latest such call could not. For a message only: calls that fail at
// the same moment may swap theirs.
static struct {
	atomic_int busy;
	char text[256];
} why;

void qs_because(const char *text) {
	int idle = 0;
	if (!atomic_compare_exchange_strong(&why.busy, &idle, 1))
		return;
	size_t n = 0;
	for (; text[n] && n < sizeof why.text - 1; n++)
		why.text[n] = text[n];
	why.text[n] = 0;
	atomic_store(&why.busy, 0);
}

void qs_why(char *text, size_t size) {
	int idle = 0;
	*text = 0;
	if (!atomic_compare_exchange_strong(&why.busy, &idle, 1))
		return;
	snprintf(text, size, "%s", why.text);
	atomic_store(&why.busy, 0);
}

static struct sigaction before[2]; // of SIGSEGV and SIGBUS

static void on_fault(int sig, siginfo_t *info, void *context) {
	sigjmp_buf *back = qs_armed;
	if (back && info->si_code > 0) { // and not from a kill
		qs_armed = NULL;
		qs_because(sig == SIGBUS ? "bus error: the file got shorter, or the disk failed" : "segmentation fault: a page leads outside of the file");
		pthread_sigmask(SIG_SETMASK, &((ucontext_t *)context)->uc_sigmask, NULL);
		siglongjmp(*back, QS_FAULT);
	}
	struct sigaction *next = &before[sig == SIGBUS];
	if (next->sa_flags & SA_SIGINFO) {
		next->sa_sigaction(sig, info, context);
	} else if (next->sa_handler == SIG_DFL || next->sa_handler == SIG_IGN) {
		sigaction(sig, next, NULL); // and the instruction faults again
	} else {
		next->sa_handler(sig);
	}
}

// LMDB aborts the process if this returns.
static void on_assert(void *env, const char *text) {
	sigjmp_buf *back = qs_armed;
	qs_because(text);
	if (back) {
		qs_armed = NULL;
		siglongjmp(*back, QS_ASSERT);
	}
}

// Go's own handlers are there before; what is not ours goes on to them.
void qs_install(void) {
	struct sigaction sa;
	memset(&sa, 0, sizeof sa);
	sa.sa_sigaction = on_fault;
	sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
	sigfillset(&sa.sa_mask);
	sigaction(SIGSEGV, &sa, &before[0]);
	sigaction(SIGBUS, &sa, &before[1]);
}

int qs_env_create(void **env, unsigned dbs, unsigned readers, size_t map_size) {
	int rc = mdb_env_create(env);
	if (rc)
		return rc;
	if (!(rc = mdb_env_set_maxdbs(*env, dbs)) && !(rc = mdb_env_set_maxreaders(*env, readers)) && map_size)
		rc = mdb_env_set_mapsize(*env, map_size);
	if (!rc)
		rc = mdb_env_set_assert(*env, on_assert);
	if (rc)
		mdb_env_close(*env);
	return rc;
}

int qs_env_open(void *env, const char *dir, unsigned flags, int *fd) {
	GUARDED;
	int rc = mdb_env_open(env, dir, flags, 0644);
	if (!rc)
		rc = mdb_env_get_fd(env, fd);
	DONE(rc);
}

int qs_env_info(void *env, qs_info *info) {
	GUARDED;
	MDB_envinfo i;
	MDB_stat s;
	int rc = mdb_env_info(env, &i);
	if (!rc && !(rc = mdb_env_stat(env, &s)))
		*info = (qs_info){i.me_mapsize, i.me_last_pgno, i.me_last_txnid, s.ms_psize};
	DONE(rc);
}

int qs_env_check_readers(void *env, int *dead) {
	GUARDED;
	DONE(mdb_reader_check(env, dead));
}

int qs_env_close(void *env) {
	GUARDED;
	mdb_env_close(env);
	DONE(0);
}

int qs_txn_begin(void *env, unsigned flags, void **txn) {
	GUARDED;
	DONE(mdb_txn_begin(env, NULL, flags, txn));
}

int qs_txn_renew(void *txn) {
	GUARDED;
	DONE(mdb_txn_renew(txn));
}

int qs_txn_reset(void *txn) {
	GUARDED;
	mdb_txn_reset(txn);
	DONE(0);
}

int qs_txn_abort(void *txn) {
	GUARDED;
	mdb_txn_abort(txn);
	DONE(0);
}

int qs_txn_commit(void *txn) {
	GUARDED;
	DONE(mdb_txn_commit(txn));
}

size_t qs_txn_id(void *txn) { return mdb_txn_id(txn); }

int qs_open_dbi(void *txn, const char *name, unsigned flags, unsigned *dbi) {
	GUARDED;
	DONE(mdb_dbi_open(txn, name, flags, dbi));
}

// looks reports whether a search looks at pages, and does not believe LMDB.
static int looks(qs_tree tree) { return tree.sight && tree.sight->base; }

int qs_entries(void *txn, qs_tree tree, uint64_t *entries) {
	GUARDED;
	MDB_stat s;
	if (looks(tree))
		DONE(qs_count(tree, entries));
	int rc = mdb_stat(txn, tree.dbi, &s);
	if (!rc)
		*entries = s.ms_entries;
	DONE(rc);
}

// The value is copied here, because only here a fault has somewhere to go.
int qs_get(void *txn, qs_tree tree, void *key, size_t key_size, void *to, size_t room, size_t *size) {
	GUARDED;
	MDB_val k = {key_size, key}, v;
	int rc = looks(tree) ? qs_find(tree, key, key_size, &v.mv_data, &v.mv_size) : mdb_get(txn, tree.dbi, &k, &v);
	if (!rc) {
		*size = v.mv_size;
		if (v.mv_size <= room)
			memcpy(to, v.mv_data, v.mv_size);
	}
	DONE(rc);
}

int qs_put(void *txn, unsigned dbi, void *key, size_t key_size, void *value, size_t size) {
	GUARDED;
	MDB_val k = {key_size, key}, v = {size, value};
	DONE(mdb_put(txn, dbi, &k, &v, 0));
}

// One call instead of a get and a put: while keys are new, LMDB's own search for
// where to insert is all that it takes.
int qs_swap(void *txn, unsigned dbi, void *key, size_t key_size, void *value, size_t size, void *to, size_t room, size_t *before, int *replaced) {
	enum { MDB_NOOVERWRITE = 0x10, MDB_KEYEXIST = -30799 };
	GUARDED;
	MDB_val k = {key_size, key}, v = {size, value};
	*replaced = 0;
	int rc = mdb_put(txn, dbi, &k, &v, MDB_NOOVERWRITE);
	if (rc == MDB_KEYEXIST) {
		*before = v.mv_size;
		*replaced = v.mv_size <= room;
		if (*replaced) {
			memcpy(to, v.mv_data, v.mv_size);
			v = (MDB_val){size, value};
			rc = mdb_put(txn, dbi, &k, &v, 0);
		}
	}
	DONE(rc);
}

int qs_del(void *txn, unsigned dbi, void *key, size_t key_size) {
	GUARDED;
	MDB_val k = {key_size, key};
	DONE(mdb_del(txn, dbi, &k, NULL));
}

int qs_cursor_open(void *txn, unsigned dbi, void **cursor) {
	GUARDED;
	DONE(mdb_cursor_open(txn, dbi, cursor));
}

// step moves a cursor, and makes sure that nothing led it astray.
static int step(void *cursor, qs_tree tree, qs_place *place, MDB_val *k, MDB_val *v, int op) {
	qs_key wanted = {k->mv_data, k->mv_size};
	int rc = mdb_cursor_get(cursor, k, v, op);
	if (!looks(tree))
		return rc;
	qs_key at = {k->mv_data, k->mv_size};
	return qs_moved(tree, op, rc, &wanted, &at, v->mv_data, place);
}

// A value of more than most bytes stays where it is; qs_cursor_part copies it.
int qs_cursor_get(void *cursor, qs_tree tree, qs_place *place, int op, void *key, size_t key_size, void *to, size_t room, size_t most, size_t *found_key, size_t *found_value) {
	GUARDED;
	MDB_val k = {key_size, key}, v = {0, NULL};
	int rc = step(cursor, tree, place, &k, &v, op);
	if (!rc) {
		*found_key = k.mv_size;
		*found_value = v.mv_size;
		size_t part = v.mv_size <= most ? v.mv_size : 0;
		if (k.mv_size <= room && part <= room - k.mv_size) {
			memcpy(to, k.mv_data, k.mv_size);
			memcpy((char *)to + k.mv_size, v.mv_data, part);
		}
	}
	DONE(rc);
}

// What of the value under the cursor stands from off on, as much as there is room for.
int qs_cursor_part(void *cursor, qs_tree tree, size_t off, void *to, size_t room, size_t *size) {
	GUARDED;
	MDB_val k = {0, NULL}, v = {0, NULL};
	*size = 0;
	int rc = mdb_cursor_get(cursor, &k, &v, GET_CURRENT);
	if (!rc && looks(tree))
		rc = qs_beside(tree, k.mv_data, v.mv_data);
	if (!rc && off < v.mv_size) {
		*size = v.mv_size - off < room ? v.mv_size - off : room;
		memcpy(to, (char *)v.mv_data + off, *size);
	}
	DONE(rc);
}

// In one call, because whoever asks for a key that is not there waits for it. The
// pairs are copied one after the other, if there is room for both; of a value of more
// than most bytes only the size is told.
int qs_around(void *txn, qs_tree tree, void *key, size_t key_size, void *to, size_t room, size_t most, qs_pair *next, qs_pair *last) {
	GUARDED;
	void *cursor;
	qs_place place = {NULL, NULL, NULL};
	MDB_val k = {key_size, key}, v = {0, NULL};
	*next = *last = (qs_pair){0, 0};
	int rc = mdb_cursor_open(txn, tree.dbi, &cursor);
	if (rc)
		DONE(rc);
	int before = PREV;
	size_t used = 0;
	rc = step(cursor, tree, &place, &k, &v, SET_RANGE);
	if (!rc) {
		*next = (qs_pair){k.mv_size, v.mv_size};
		size_t part = v.mv_size <= most ? v.mv_size : 0;
		used = k.mv_size + part;
		if (used <= room) {
			memcpy(to, k.mv_data, k.mv_size);
			memcpy((char *)to + k.mv_size, v.mv_data, part);
		}
	} else if (rc == QS_NOTFOUND) { // what the cursor does then differs by version
		mdb_cursor_close(cursor);
		if ((rc = mdb_cursor_open(txn, tree.dbi, &cursor)))
			DONE(rc);
		before = LAST;
		place = (qs_place){NULL, NULL, NULL};
	}
	if (rc == 0 && (rc = step(cursor, tree, &place, &k, &v, before)) == 0) {
		*last = (qs_pair){k.mv_size, v.mv_size};
		size_t part = v.mv_size <= most ? v.mv_size : 0;
		if (used <= room && k.mv_size <= room - used && part <= room - used - k.mv_size) {
			memcpy((char *)to + used, k.mv_data, k.mv_size);
			memcpy((char *)to + used + k.mv_size, v.mv_data, part);
		}
	}
	mdb_cursor_close(cursor);
	DONE(rc == QS_NOTFOUND ? 0 : rc);
}

int qs_cursor_close(void *cursor) {
	GUARDED;
	mdb_cursor_close(cursor);
	DONE(0);
}
