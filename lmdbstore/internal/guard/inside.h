// What the files of this package share.
#include <setjmp.h>
#include <stddef.h>

// LMDB's interface, which the binding brings. It has been the same since 0.9.10.
typedef struct { size_t mv_size; void *mv_data; } MDB_val;
typedef struct {
	unsigned ms_psize, ms_depth;
	size_t ms_branch_pages, ms_leaf_pages, ms_overflow_pages, ms_entries;
} MDB_stat;
typedef struct {
	void *me_mapaddr;
	size_t me_mapsize, me_last_pgno, me_last_txnid;
	unsigned me_maxreaders, me_numreaders;
} MDB_envinfo;

enum { FIRST = 0, GET_CURRENT = 4, LAST = 6, NEXT = 8, PREV = 12, SET_RANGE = 17 }; // what cursors do

#define API __attribute__((weak)) extern // so that this package can be linked by itself
API int mdb_env_create(void **);
API int mdb_env_set_maxdbs(void *, unsigned);
API int mdb_env_set_maxreaders(void *, unsigned);
API int mdb_env_set_mapsize(void *, size_t);
API int mdb_env_set_assert(void *, void (*)(void *, const char *));
API int mdb_env_open(void *, const char *, unsigned, unsigned);
API int mdb_env_get_fd(void *, int *);
API int mdb_env_info(void *, MDB_envinfo *);
API int mdb_env_stat(void *, MDB_stat *);
API int mdb_reader_check(void *, int *);
API void mdb_env_close(void *);
API int mdb_txn_begin(void *, void *, unsigned, void **);
API int mdb_txn_renew(void *);
API void mdb_txn_reset(void *);
API void mdb_txn_abort(void *);
API int mdb_txn_commit(void *);
API size_t mdb_txn_id(void *);
API int mdb_dbi_open(void *, const char *, unsigned, unsigned *);
API int mdb_stat(void *, unsigned, MDB_stat *);
API int mdb_get(void *, unsigned, MDB_val *, MDB_val *);
API int mdb_put(void *, unsigned, MDB_val *, MDB_val *, unsigned);
API int mdb_del(void *, unsigned, MDB_val *, MDB_val *);
API int mdb_cursor_open(void *, unsigned, void **);
API int mdb_cursor_get(void *, MDB_val *, MDB_val *, int);
API void mdb_cursor_close(void *);

// Where the call that this thread is in comes back to if it cannot go on; NULL
// outside of one.
extern __thread sigjmp_buf *volatile qs_armed;

// qs_because says why a call could not go on.
void qs_because(const char *text);

// GUARDED makes the rest of a function one that comes back with QS_FAULT or
// QS_ASSERT where it would end the process. Its end is DONE.
#define GUARDED                                \
	sigjmp_buf back;                       \
	int failed = sigsetjmp(back, 0);       \
	if (failed)                            \
		return failed;                 \
	qs_armed = &back
#define DONE(code)                             \
	do {                                   \
		int done = (code);             \
		qs_armed = NULL;               \
		return done;                   \
	} while (0)
