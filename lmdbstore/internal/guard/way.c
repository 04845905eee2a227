#include "guard.h"
#include "inside.h"

#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

// The layout of LMDB's file (docs/formats.md, and mdb.c of 0.9): a page begins with its
// number (u64), u16 of padding, u16 flags, and where its free space begins and ends (u16
// each); then come offsets of its nodes (u16). A node is 8 bytes, a key, and in a leaf a
// value. All numbers are in the machine's order, which is little-endian.
enum {
	HEADER = 16, NODE = 8, RECORD = 48,
	FLAGS = 10, LOWER = 12, UPPER = 14,
	BRANCH = 1, LEAF = 2, OVERFLOW = 4, KINDS = 15,
	BIG = 1, SUB = 2, // of a node
	META_MAIN = HEADER + 72, META_LAST = HEADER + 120, META_TXN = HEADER + 128,
	RECORD_ENTRIES = 32, RECORD_ROOT = 40,
	MAX_DEPTH = 32,
};
static const uint32_t magic = 0xBEEFC0DE;
static const uint64_t none = ~(uint64_t)0;

static uint16_t u16(const unsigned char *p) { uint16_t v; memcpy(&v, p, sizeof v); return v; }
static uint32_t u32(const unsigned char *p) { uint32_t v; memcpy(&v, p, sizeof v); return v; }
static uint64_t u64(const unsigned char *p) { uint64_t v; memcpy(&v, p, sizeof v); return v; }

static int wrong(const char *text) {
	qs_because(text);
	return QS_ASSERT;
}

// at returns a page, if it is that page and of one of those kinds.
static const unsigned char *at(const qs_sight *s, uint64_t number, unsigned kind) {
	if (number > s->last)
		return NULL;
	const unsigned char *p = s->base + number * s->page;
	unsigned is = u16(p + FLAGS) & KINDS;
	return u64(p) == number && is & kind && !(is & (is - 1)) ? p : NULL;
}

// page_of returns where the page begins that p is in.
static const unsigned char *page_of(const qs_sight *s, const void *p) {
	return s->base + ((const unsigned char *)p - s->base) / s->page * s->page;
}

// node returns the i-th of a page's n nodes, with room for its key.
static const unsigned char *node(const qs_sight *s, const unsigned char *p, unsigned i) {
	unsigned off = u16(p + HEADER + 2 * i);
	if (off < u16(p + UPPER) || off + NODE > s->page || off + NODE + u16(p + off + 6) > s->page)
		return NULL;
	return p + off;
}

static int compare(const void *key, size_t size, const unsigned char *n) {
	size_t other = u16(n + 6);
	int c = memcmp(key, n + NODE, size < other ? size : other);
	return c ? c : (size > other) - (size < other);
}

// find searches a tree for key, and says where it ended. It fails where a page on the way,
// because it is another than it should be, would lead it astray.
static int find(const qs_sight *s, uint64_t root, const void *key, size_t size, qs_place *place, const unsigned char **leaf_node) {
	*leaf_node = NULL;
	*place = (qs_place){NULL, NULL, NULL};
	if (root == none)
		return QS_NOTFOUND;
	uint64_t number = root;
	for (int depth = 0; depth < MAX_DEPTH; depth++) {
		const unsigned char *p = at(s, number, BRANCH | LEAF), *n = NULL;
		if (!p)
			return wrong("a page on the way to a key is another than it should be");
		unsigned lower = u16(p + LOWER);
		int branch = u16(p + FLAGS) & BRANCH;
		if (lower < HEADER + 2 || lower % 2 || lower > u16(p + UPPER) || u16(p + UPPER) > s->page)
			return wrong("a page on the way to a key has no nodes, or more than fit");
		// In the steps of LMDB's, so that keys out of order lead both to the same place.
		int count = (lower - HEADER) / 2, low = branch, high = count - 1; // a branch's first key is not there
		while (low <= high) {
			int middle = (low + high) / 2;
			if (!(n = node(s, p, middle)))
				return wrong("a node on the way to a key leads out of its page");
			int c = compare(key, size, n);
			if (c == 0 && !branch) {
				*leaf_node = n;
				place->page = p;
				return 0;
			}
			if (c < 0) {
				high = middle - 1;
			} else {
				low = middle + 1;
				if (c == 0)
					break;
			}
		}
		if (!branch) {
			place->page = p;
			return QS_NOTFOUND;
		}
		if (!(n = node(s, p, low - 1)))
			return wrong("a node on the way to a key leads out of its page");
		if (low > 1)
			place->from = n;
		if (low < count)
			place->to = p + u16(p + HEADER + 2 * low);
		number = u32(n) | (uint64_t)u16(n + 4) << 32;
	}
	return wrong("the way to a key does not end");
}

// look_up looks up a database's record, once in a transaction.
static int look_up(qs_tree t) {
	qs_sight *s = t.sight;
	if (s->root[t.dbi])
		return 0;
	qs_place place;
	const unsigned char *n;
	int rc = find(s, s->main, t.name, strlen(t.name), &place, &n);
	if (rc)
		return rc == QS_NOTFOUND ? wrong("a database is not there") : rc;
	const unsigned char *record = n + NODE + u16(n + 6);
	if (!(u16(n + 4) & SUB) || u32(n) != RECORD || record + RECORD > page_of(s, n) + s->page)
		return wrong("a database's record is none");
	s->root[t.dbi] = u64(record + RECORD_ROOT);
	s->entries[t.dbi] = u64(record + RECORD_ENTRIES);
	return 0;
}

// find_in is find in a database.
static int find_in(qs_tree t, const void *key, size_t size, qs_place *place, const unsigned char **n) {
	int rc = look_up(t);
	return rc ? rc : find(t.sight, t.sight->root[t.dbi], key, size, place, n);
}

int qs_count(qs_tree t, uint64_t *entries) {
	int rc = look_up(t);
	*entries = rc ? 0 : t.sight->entries[t.dbi];
	return rc;
}

// qs_find finds key in a database. It fails where LMDB would be led astray.
int qs_find(qs_tree t, const void *key, size_t size, void **value, size_t *value_size) {
	const qs_sight *s = t.sight;
	const unsigned char *n;
	qs_place place;
	int rc = find_in(t, key, size, &place, &n);
	if (rc)
		return rc;
	const unsigned char *v = n + NODE + u16(n + 6), *p = page_of(s, n);
	size_t room = p + s->page - v;
	*value_size = u32(n);
	if (u16(n + 4) & BIG) {
		if (room < 8 || !(p = at(s, u64(v), OVERFLOW)) || *value_size > (s->last - u64(v) + 1) * s->page - HEADER)
			return wrong("a long value is not where it should be");
		v = p + HEADER;
	} else if (*value_size > room) {
		return wrong("a value leads out of its page");
	}
	*value = (void *)v;
	return 0;
}

// qs_beside fails if the value of a pair that LMDB found is not where it should be: on the pair's
// page, or on pages of its own.
int qs_beside(qs_tree t, const void *key, const void *value) {
	const unsigned char *p = page_of(t.sight, value);
	if (p == page_of(t.sight, key) || at(t.sight, (p - t.sight->base) / t.sight->page, OVERFLOW))
		return 0;
	return wrong("a long value is not where it should be");
}

// locate finds the place of a key that a cursor came to: there, or a page led it astray.
static int locate(qs_tree t, const qs_key *key, qs_place *place) {
	const unsigned char *n;
	int rc = find_in(t, key->data, key->size, place, &n);
	if (rc == QS_NOTFOUND || !rc && place->page != page_of(t.sight, key->data))
		return wrong("a page above a pair that a cursor came to is another than it should be");
	return rc;
}

// qs_moved looks at where LMDB moved a cursor by op, which says so by rc: to at, seeking wanted
// if op takes a key. It has to be where a search for it ends, and a leaf beside the one
// before: the same key of a branch parts both. place is of the one before, and then
// of this one.
int qs_moved(qs_tree t, int op, int rc, const qs_key *wanted, const qs_key *at, const void *value, qs_place *place) {
	static const char astray[] = "a page that a cursor passed is another than it should be";
	const unsigned char *n;
	if (rc && rc != QS_NOTFOUND)
		return rc;
	if (!rc && (rc = qs_beside(t, at->data, value)))
		return rc;
	if (op == SET_RANGE || op == FIRST || op == LAST)
		place->page = NULL; // wherever it was: it does not go on from there
	else if (!place->page && (op == NEXT || op == PREV))
		op = op == NEXT ? FIRST : LAST;
	qs_place before = *place, now;
	if (op == SET_RANGE) {
		int found = find_in(t, wanted->data, wanted->size, &before, &n);
		if (found && found != QS_NOTFOUND)
			return found;
		op = NEXT;
	}
	if (rc == QS_NOTFOUND) { // there is nothing more on that side, or nothing at all
		int failed = look_up(t);
		if (failed)
			return failed;
		if (before.page ? op == NEXT ? before.to : op == PREV ? before.from : before.page : t.sight->root[t.dbi] != none ? t.name : NULL)
			return wrong(astray);
		*place = before;
		return rc;
	}
	if (page_of(t.sight, at->data) == place->page)
		return 0;
	if ((rc = locate(t, at, &now)))
		return rc;
	if (now.page == before.page) // and that is where a search for the key that was sought ends
		op = -1;
	switch (op) {
	case -1:
		rc = now.from != before.from || now.to != before.to;
		break;
	case FIRST:
		rc = now.from != NULL;
		break;
	case LAST:
		rc = now.to != NULL;
		break;
	case NEXT:
		rc = !now.from || now.from != before.to;
		break;
	case PREV:
		rc = !now.to || now.to != before.from;
		break;
	}
	if (rc)
		return wrong(astray);
	*place = now;
	return 0;
}

// base finds where LMDB's map begins: LMDB does not tell.
static int base(void *txn, qs_sight *s) {
	enum { MAIN = 1 };
	if (sysconf(_SC_PAGESIZE) < (long)s->page)
		return 0; // pages may begin anywhere: LMDB searches
	void *cursor;
	MDB_val k = {0, NULL}, v = {0, NULL};
	int rc = mdb_cursor_open(txn, MAIN, &cursor);
	if (rc)
		return rc;
	rc = mdb_cursor_get(cursor, &k, &v, FIRST);
	mdb_cursor_close(cursor);
	if (rc)
		return rc == QS_NOTFOUND ? wrong("there are no databases") : rc;
	const unsigned char *p = (const unsigned char *)((uintptr_t)k.mv_data & ~(uintptr_t)(s->page - 1));
	const unsigned char *b = p - u64(p) * s->page;
	if (u32(b + HEADER) != magic || u32(b + s->page + HEADER) != magic)
		return wrong("the main database's page is another than it should be");
	s->base = b;
	return 0;
}

// qs_sight_take looks up what a read transaction sees that has just begun. s->page is set,
// and s->base if it was taken before. With sure it wants to be sure that the meta page is
// not just being overwritten.
int qs_sight_take(void *txn, qs_sight *s, int sure) {
	GUARDED;
	if (!s->base) {
		int rc = base(txn, s);
		if (rc || !s->base)
			DONE(rc);
	}
	uint64_t id = mdb_txn_id(txn);
	const unsigned char *meta = s->base + (id & 1) * s->page, *other = s->base + (~id & 1) * s->page;
	s->last = 0;
	memset(s->root, 0, sizeof s->root);
	if (u64(meta + META_TXN) != id)
		DONE(QS_AGAIN);
	s->main = u64(meta + META_MAIN + RECORD_ROOT);
	s->last = u64(meta + META_LAST);
	// The next transaction writes the other page, and the one after that this page, its
	// number last. As long as the other is of the one before, nobody has begun to.
	atomic_thread_fence(memory_order_acquire);
	DONE(u64(meta + META_TXN) != id || sure && id && u64(other + META_TXN) > id ? QS_AGAIN : 0);
}
