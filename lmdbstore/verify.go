package lmdbstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/qs-peer/qs-peer/internal/durable"
	"github.com/qs-peer/qs-peer/lmdbstore/internal/mdbfile"
)

// Verify says how much of an environment Open reads before LMDB maps it. After an
// unclean stop it is always VerifyFull.
type Verify int

const (
	// VerifySampled reads what VerifyQuick does, the whole free list, and
	// sampledLeaves pages of pairs chosen at random with all that leads to them
	// and all their values. It takes some ten milliseconds, whatever the size,
	// and finds damage of one page in a hundred 92 times in a hundred. A file of
	// up to 4 MiB is read as a whole.
	VerifySampled Verify = iota
	// VerifyQuick reads the size, both meta pages, and the position: a millisecond.
	VerifyQuick
	// VerifyFull reads everything, as Check does.
	VerifyFull
)

const (
	// sampledLeaves is how many pages of pairs VerifySampled looks at.
	sampledLeaves = 256
	// smallFile is the size up to which it may as well look at all, in bytes.
	smallFile = 4 << 20
)

var verifyNames = [...]string{VerifySampled: "sampled", VerifyQuick: "quick", VerifyFull: "full"}

func (v Verify) String() string {
	if v < 0 || int(v) >= len(verifyNames) {
		return fmt.Sprintf("Verify(%d)", int(v))
	}
	return verifyNames[v]
}

// ParseVerify is the inverse of String.
func ParseVerify(text string) (Verify, error) {
	for v, name := range verifyNames {
		if text == name {
			return Verify(v), nil
		}
	}
	return 0, fmt.Errorf("%q is not how a store can be verified: say quick, sampled or full", text)
}

// verify looks at a generation's file before it is mapped.
func (s *Store) verify(dir string) error {
	file := filepath.Join(dir, dataFile)
	_, format, err := inspect(file)
	if err != nil {
		return err
	}
	level, why := s.options.Verify, "as configured"
	clean, err := closedCleanly(dir)
	if err != nil {
		return err
	}
	if !clean {
		level, why = VerifyFull, "it was not closed"
		s.options.Logger.Info("verifying the whole environment, because it was not closed", "dir", dir)
	}
	began := time.Now()
	switch level {
	case VerifySampled:
		err = verifySampled(file, encoding{plain: format == 1})
	case VerifyFull:
		_, err = CheckFile(context.Background(), file)
	}
	if err != nil {
		return err
	}
	s.options.Logger.Debug("verified", "dir", dir, "how", level, "why", why, "seconds", time.Since(began).Seconds())
	return nil
}

func verifySampled(file string, values encoding) error {
	f, size, err := openFile(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if size <= smallFile {
		_, err := CheckFile(context.Background(), file)
		return err
	}
	err = mdbfile.Sample(f, size, dbKV, sampledLeaves, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), func(key, value []byte) error {
		_, err := values.open(key, value)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// cleanFile stands in the directory of a generation that was closed. It holds
// the SHA-256 of the meta pages, so that it says nothing once there was another
// commit, even if its removal did not survive a power cut.
const cleanFile = "CLEAN"

func metaSum(dir string) (string, error) {
	f, err := os.Open(filepath.Join(dir, dataFile))
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyN(h, f, 2*int64(os.Getpagesize())); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x\n", h.Sum(nil)), nil
}

func closedCleanly(dir string) (bool, error) {
	noted, err := os.ReadFile(filepath.Join(dir, cleanFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	sum, err := metaSum(dir)
	return err == nil && sum == string(noted), err
}

// unclean removes what markClean wrote. The caller syncs the directory.
func unclean(dir string) error {
	if err := os.Remove(filepath.Join(dir, cleanFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// markClean notes that a generation was closed.
func markClean(dir string) error {
	sum, err := metaSum(dir)
	if err != nil {
		return err
	}
	return durable.WriteFile(durable.OS, filepath.Join(dir, cleanFile), []byte(sum), 0o644)
}
