#include <stddef.h>
#include <stdint.h>

// What the calls return besides LMDB's codes and errno.
#define QS_FAULT (-40000)  // the processor could not reach what LMDB went for
#define QS_ASSERT (-40001) // LMDB, or we, found what cannot be
#define QS_AGAIN (-40002)  // what the transaction began with is overwritten: begin it again
#define QS_NOTFOUND (-30798) // MDB_NOTFOUND

typedef struct {
	uint64_t map_size, last_page, last_txn;
	unsigned page_size;
} qs_info;

typedef struct {
	size_t key, value; // sizes; no key: there is no such pair
} qs_pair;

// What a read transaction sees, for searches that look at each page before they believe
// it (way.c).
#define QS_DBS 4
typedef struct {
	const unsigned char *base; // of LMDB's map; NULL: LMDB is to search
	size_t page;               // size of a page, in bytes
	uint64_t main, last;       // the main database's root, the last page
	uint64_t root[QS_DBS];     // of the database with that handle; 0: not looked up yet
	uint64_t entries[QS_DBS];
} qs_sight;

// A database, as a transaction sees it.
typedef struct {
	unsigned dbi;
	const char *name;
	qs_sight *sight; // NULL: LMDB is to search
} qs_tree;

// A leaf, and the branches' keys that part it from those beside it: NULL: there is none.
typedef struct {
	const void *page, *from, *to;
} qs_place;

typedef struct {
	const void *data;
	size_t size;
} qs_key;

int qs_sight_take(void *txn, qs_sight *sight, int sure);
int qs_find(qs_tree tree, const void *key, size_t size, void **value, size_t *value_size);
int qs_count(qs_tree tree, uint64_t *entries);
int qs_beside(qs_tree tree, const void *key, const void *value);
int qs_moved(qs_tree tree, int op, int rc, const qs_key *wanted, const qs_key *at, const void *value, qs_place *place);

void qs_install(void);
void qs_why(char *text, size_t size);

int qs_env_create(void **env, unsigned dbs, unsigned readers, size_t map_size);
int qs_env_open(void *env, const char *dir, unsigned flags, int *fd);
int qs_env_info(void *env, qs_info *info);
int qs_env_check_readers(void *env, int *dead);
int qs_env_close(void *env);

int qs_txn_begin(void *env, unsigned flags, void **txn);
int qs_txn_renew(void *txn);
int qs_txn_reset(void *txn);
int qs_txn_abort(void *txn);
int qs_txn_commit(void *txn);
size_t qs_txn_id(void *txn);

int qs_open_dbi(void *txn, const char *name, unsigned flags, unsigned *dbi);
int qs_entries(void *txn, qs_tree tree, uint64_t *entries);
int qs_get(void *txn, qs_tree tree, void *key, size_t key_size, void *to, size_t room, size_t *size);
int qs_put(void *txn, unsigned dbi, void *key, size_t key_size, void *value, size_t size);
int qs_swap(void *txn, unsigned dbi, void *key, size_t key_size, void *value, size_t size, void *to, size_t room, size_t *before, int *replaced);
int qs_del(void *txn, unsigned dbi, void *key, size_t key_size);

int qs_cursor_open(void *txn, unsigned dbi, void **cursor);
int qs_cursor_get(void *cursor, qs_tree tree, qs_place *place, int op, void *key, size_t key_size, void *to, size_t room, size_t most, size_t *found_key, size_t *found_value);
int qs_cursor_part(void *cursor, qs_tree tree, size_t off, void *to, size_t room, size_t *size);
int qs_around(void *txn, qs_tree tree, void *key, size_t key_size, void *to, size_t room, size_t most, qs_pair *next, qs_pair *last);
int qs_cursor_close(void *cursor);
