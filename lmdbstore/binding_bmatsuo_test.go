//go:build lmdb_bmatsuo

package lmdbstore

import "github.com/bmatsuo/lmdb-go/lmdb"

// The binding itself, which benchmarks compare with.
type lmdbTxn = lmdb.Txn

func newLMDBEnv() (*lmdb.Env, error) { return lmdb.NewEnv() }
