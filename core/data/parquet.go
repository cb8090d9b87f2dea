package data

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/parquet-go/parquet-go"
)

// parquet reads a row a document. Columns go by the same names as JSON fields.
func (s *source) parquet(ctx context.Context, name string, r io.ReaderAt, size int64) (err error) {
	const damaged = "the file is damaged or no Parquet file; fetch it again"
	group, row := -1, 0
	place := func() string {
		if group < 0 {
			return ""
		}
		return fmt.Sprintf("row group %d, row %d", group, row)
	}
	yielding := false
	defer func() {
		// The library panics on some damaged files.
		if p := recover(); p != nil {
			if yielding {
				panic(p)
			}
			err = &Error{Path: name, Place: place(), What: fmt.Sprint(p), Hint: damaged, Err: ErrDamaged}
		}
	}()
	f, err := parquet.OpenFile(r, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return &Error{Path: name, What: err.Error(), Hint: damaged, Err: err}
	}
	columns := map[string]int{}
	var names []string
	for i, c := range f.Schema().Columns() {
		if _, ok := columns[c[0]]; !ok { // of a list, the leaf
			columns[c[0]] = i
			names = append(names, c[0])
		}
	}
	pick := func(fields []string) int {
		for _, n := range fields {
			if i, ok := columns[n]; ok {
				return i
			}
		}
		return -1
	}
	text, path, project, licence := pick(textFields), pick(pathFields), pick(groupFields), pick(licenceFields)
	if text < 0 {
		return &Error{Path: name, What: fmt.Sprintf("no column has one of the names %q; there are %q", textFields, names), Hint: "rename the column that holds the text"}
	}
	buf := make([]parquet.Row, 64)
	number := 0
	for g, rg := range f.RowGroups() {
		group, row = g, 0
		rows := rg.Rows()
		for {
			if err := ctx.Err(); err != nil {
				rows.Close()
				return err
			}
			n, err := rows.ReadRows(buf)
			for _, values := range buf[:n] {
				number++
				d := Document{Text: columnString(values, text), Path: columnString(values, path), Group: columnString(values, project), Licence: columnString(values, licence)}
				if d.Path == "" {
					d.Path = fmt.Sprintf("%s#%d", filepath.Base(name), number)
				}
				if d.Group == "" {
					d.Group = groupOfPath(d.Path)
				}
				yielding = true
				if err := s.yield(d); err != nil {
					rows.Close()
					return err
				}
				yielding = false
				row++
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				rows.Close()
				return &Error{Path: name, Place: place(), What: err.Error(), Hint: damaged, Err: err}
			}
			if n == 0 {
				rows.Close()
				return &Error{Path: name, Place: place(), What: "the row group ends before its last row", Hint: damaged}
			}
		}
		if err := rows.Close(); err != nil {
			return &Error{Path: name, Place: place(), What: err.Error(), Hint: damaged, Err: err}
		}
	}
	return nil
}

// columnString copies the string in a column of a row; several, of a list, are
// joined with " AND ". It is "" where there is none.
func columnString(row parquet.Row, column int) string {
	var list []string
	for _, v := range row {
		if v.Column() == column && !v.IsNull() && (v.Kind() == parquet.ByteArray || v.Kind() == parquet.FixedLenByteArray) {
			list = append(list, string(v.ByteArray()))
		}
	}
	return strings.Join(list, " AND ")
}
