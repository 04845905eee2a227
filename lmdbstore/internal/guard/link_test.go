package guard_test

import _ "github.com/qs-peer/qs-peer/lmdbstore" // brings LMDB itself, of whichever binding
