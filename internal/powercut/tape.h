#include <stddef.h>

// tape_event is a write, or the sync of all writes before it (off is -1).
struct tape_event {
	long long off;
	size_t len;
	int synced; // the write itself was
	char *data;
};

void tape_start(unsigned long long dev, unsigned long long ino);
int tape_stop(struct tape_event **events, size_t *n);
size_t tape_count(void);
