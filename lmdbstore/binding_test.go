//go:build !lmdb_bmatsuo

package lmdbstore

import "github.com/PowerDNS/lmdb-go/lmdb"

// The binding itself, which benchmarks compare with.
type lmdbTxn = lmdb.Txn

func newLMDBEnv() (*lmdb.Env, error) { return lmdb.NewEnv() }
