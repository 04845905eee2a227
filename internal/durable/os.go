package durable

import (
	"io/fs"
	"os"
)

type osFS struct{}

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) { panic("unwritten") }
func (osFS) Rename(oldname, newname string) error                           { return os.Rename(oldname, newname) }
func (osFS) Remove(name string) error                                       { return os.Remove(name) }
func (osFS) MkdirAll(name string, perm fs.FileMode) error                   { return os.MkdirAll(name, perm) }
func (osFS) ReadDir(name string) ([]fs.DirEntry, error)                     { return os.ReadDir(name) }
func (osFS) SyncDir(name string) error                                      { panic("unwritten") }
