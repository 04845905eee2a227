// Package peer is one running node, a manager or a worker: it wires the log,
// the store, the snapshots, the swarm, the gossip and the replica together, and
// serves HTTP, RESP and metrics. It is importable, so tests run fleets in one
// process.
//
// # Data directory
//
//	LOCK         locked (flock) by the process that runs the node; holds its
//	             process id until it ends in order
//	node.json    format, dataset, role, name, whether this manager is the writer
//	addrs.json   the addresses the running node listens on; removed at a clean stop
//	log/         txlog
//	store/       lmdbstore
//	snapshots/   internal/snapshot
//	evidence/    of forks (internal/heads), and quarantines that are over
//	quarantine.json  why the store is out of service, or the writer does not start
//	             (casefile.go); absent otherwise
//	scrub.json   when each part was last read and verified
//
// # HTTP
//
// Errors are {"error": "…"} with a sentence that says what to do, and may carry
// more fields. Keys in paths are percent-encoded bytes. With base64=true in the
// query, keys and values in JSON are standard base64; otherwise they are text
// and must be valid UTF-8 (a key or value that is not is 422 when read, with the
// advice to ask for base64).
//
//	GET    /v1/kv/{key}    200 the value's bytes, 404 absent; Qs-Pos: SEQ/HASH
//	PUT    /v1/kv/{key}    the body is the value; 200 {"seq":N,"hash":"…"}
//	DELETE /v1/kv/{key}    200 {"seq":N,"hash":"…"}
//	POST   /v1/txn         {"ops":[{"op":"put","key":…,"value":…},{"op":"delete","key":…}]}; 200 {"seq":N,"hash":"…"}
//	GET    /v1/scan        ?prefix=&start=&end=&reverse=true&limit=N; JSON Lines {"key":…,"value":…} in key order,
//	                       one state throughout (Qs-Pos); cut off (no clean end of the body) when it cannot be completed,
//	                       if possible after a last line {"error":…} that says why
//	GET    /v1/snapshots   {"snapshots":[{seq,hash,infohash,sha256,size,pairs,time}, …]}, newest first
//	POST   /v1/snapshots   mint and publish now; 200 {seq,hash,infohash,sha256,size,pairs}
//	GET    /v1/snapshots/{infohash}/torrent    the .torrent file
//	GET    /v1/snapshots/{infohash}/manifest
//	GET    /v1/status      the fleet as this node's gossip sees it (README)
//	GET    /v1/progress    this node's fetch of a snapshot, the present or else the last one (below); 404 before the first
//	POST   /v1/scrub       ?part=&rate=: read and verify what this node holds now; 200 {sound,parts:[{part,…}]} (below)
//	GET    /healthz        200 while the process works
//	GET    /readyz         200 when reads may be served here, otherwise 503 with the state
//	GET    /metrics        Prometheus
//	GET    /               this list in short
//
// The bounds of a scan are percent-encoded bytes, also with base64=true; start
// is the lower one, also with reverse=true.
//
// Writes to a node that is not the writer are 421 {"error":…,"writer":"http://…"}
// (https with TLS; without writer while none is known), as is minting on a worker.
// Over-limit keys, values and transactions are 413 with which limit was passed
// ("limit":{what,got,min,max}, in bytes; a transaction has 18 MiB, each operation
// counting 96 bytes more than its key and value); malformed requests 400. Reads on a
// node that holds nothing it may serve are 503 {"error":…,"state":…}. A write is
// answered once its entry is on stable storage in the log and applied here, so
// that a following read sees it. Half a body is 400 and writes nothing.
//
// With TLS the caller is who the certificate says, and each endpoint takes a right
// (routes.go): without it the answer is 403 {"error":…,"role":…,"roles":[those that may]}.
// More requests than ClientLimits.Rate are 429; 503 with Retry-After is for what finds
// no memory or place that clients share.
//
// A client that neither sends nor takes anything for 30 s, or less than 64 KiB/s on
// average after that, is cut off, so that none holds memory or a read transaction; a
// scan also after 15 minutes, because its state keeps the file from reusing pages.
//
// Progress is {infohash, total, done (bytes; those found on disk included), pieces,
// pieces_done, from: {managers, own_colo, other_colos: {bytes, pieces}}, wasted
// (bytes received twice or in a bad piece), rate (bytes per second over the last
// 5 s), seconds_left (null without a rate), and three times, null before: began,
// fetched (every piece was verified), serving (the first time after that); running}.
//
// # RESP
//
// RESP2 (https://redis.io/docs/latest/develop/reference/protocol-spec/): GET
// MGET EXISTS STRLEN SCAN SET DEL MSET MULTI EXEC DISCARD PING ECHO QUIT INFO
// COMMAND SELECT. Writes are answered as over HTTP, in Redis's words: -READONLY
// on a node that is not the writer, -LOADING while reads may not be served, -NOPERM
// for what the role may not (respcmd.go), -TRYAGAIN for 429 and 503. SET
// takes no options. SCAN takes MATCH prefix* and COUNT and returns keys in key
// order; a cursor is a number that stands for a key on the node that made it,
// which remembers the last 4096. INFO tells the entry of the connection's last
// write (qs_last_write_seq).
//
// # Failure
//
// A failed fsync of the log, a dataset that is not this node's, or another live
// node of the same name can not be mended by trying again: the node says so on
// /healthz (503) and closes Done; whoever runs it restarts it, and finds out
// what the disk kept.
package peer
