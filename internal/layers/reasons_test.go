package layers

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestEveryReasonIsExplained finds the words for which somebody or something is
// refused, which become metrics' labels, and looks for them in docs/security.md.
func TestEveryReasonIsExplained(t *testing.T) {
	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	explained := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(string(page), -1) {
		explained[m[1]] = true
	}
	reasons := map[string]string{} // where each is
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, word := range reasonsIn(file) {
			reasons[word] = path
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(reasons) < 30 {
		t.Fatalf("only %d reasons were found: %v", len(reasons), reasons)
	}
	for word, path := range reasons {
		if !explained[word] {
			t.Errorf("docs/security.md does not explain the reason %q of %s", word, path)
		}
	}
}

// reasonsIn returns the values of constants that are a Reason, by their type or by
// conversion, and the first field of each manifestError.
func reasonsIn(file *ast.File) (words []string) {
	add := func(e ast.Expr) {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			word, _ := strconv.Unquote(lit.Value)
			words = append(words, word)
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ValueSpec:
			if isReason(n.Type) {
				for _, v := range n.Values {
					add(v)
				}
			}
		case *ast.CallExpr:
			if isReason(n.Fun) && len(n.Args) == 1 {
				add(n.Args[0])
			}
		case *ast.CompositeLit:
			if id, ok := n.Type.(*ast.Ident); ok && id.Name == "manifestError" && len(n.Elts) > 0 {
				add(n.Elts[0])
			}
		}
		return true
	})
	return words
}

func isReason(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name == "Reason"
	case *ast.SelectorExpr:
		return e.Sel.Name == "Reason"
	}
	return false
}
