package data

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/architehc/nanochat/core/internal/fsx"
)

// The values of PrepareOptions.GroupBy.
const (
	// ByRepository makes one group of the outermost directory that has the mark of
	// a project and all below it: crates of one workspace are in one split.
	ByRepository = "repository"
	// ByCrate makes one group of each innermost one.
	ByCrate = "crate"
)

// A project is the crate or repository a directory belongs to.
type project struct {
	name    string
	licence string
	// workspace is what crates below get that leave their licence to it.
	workspace string
}

// projectMarks are names that only the top directory of a project has.
var projectMarks = []string{".git", "Cargo.toml", "go.mod", "package.json", "pyproject.toml", "setup.py"}

// enter returns the project of a directory below one of project p.
func (w *walk) enter(dir string, entries []fs.DirEntry, p project) project {
	has := func(name string) bool {
		return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name })
	}
	if slices.ContainsFunc(projectMarks, has) && (p.name == "" || w.groupBy == ByCrate) {
		p.name = withoutVersion(filepath.Base(dir))
	}
	if has("Cargo.toml") {
		c := readCargo(w.fs, filepath.Join(dir, "Cargo.toml"))
		if c.workspaceLicence != "" {
			p.workspace = c.workspaceLicence
		}
		switch {
		case c.licence != "":
			p.licence = c.licence
		case c.inherits && p.workspace != "":
			p.licence = p.workspace
		}
		// The crate's own name unites its versions, whatever their directories are called.
		if c.name != "" && p.name == withoutVersion(filepath.Base(dir)) {
			p.name = c.name
		}
	}
	if p.licence == "" {
		for _, e := range entries {
			upper := strings.ToUpper(e.Name())
			if e.Type().IsRegular() && (strings.HasPrefix(upper, "LICENSE") || strings.HasPrefix(upper, "LICENCE") || strings.HasPrefix(upper, "COPYING")) {
				if p.licence = licenceOfFile(w.fs, filepath.Join(dir, e.Name())); p.licence != "" {
					break
				}
			}
		}
	}
	return p
}

// cargo is what is wanted of a Cargo.toml.
type cargo struct {
	name, licence, workspaceLicence string
	inherits                        bool // its licence is that of its workspace
}

// readCargo reads the few keys by line: they are simple strings wherever crates
// are published. What it cannot read is empty.
func readCargo(fsys fsx.FS, name string) (c cargo) {
	b, err := fsx.ReadFile(fsys, name, 1<<20)
	if err != nil {
		return c
	}
	table := ""
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			table = strings.Trim(line, "[] ")
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		text := ""
		if len(value) > 1 && (value[0] == '"' || value[0] == '\'') {
			text, _, _ = strings.Cut(value[1:], value[:1])
		}
		switch table + "." + key {
		case "package.name":
			c.name = text
		case "package.license":
			c.licence = text
			c.inherits = strings.HasPrefix(value, "{") && strings.Contains(value, "workspace")
		case "package.license.workspace":
			c.inherits = true
		case "workspace.package.license":
			c.workspaceLicence = text
		}
	}
	return c
}

// licenceTexts are words by which licence files are known, tested in this order.
var licenceTexts = []struct{ words, id string }{
	{"Apache License", "Apache-2.0"},
	{"MIT License", "MIT"},
	{"Permission is hereby granted, free of charge", "MIT"},
	{"Mozilla Public License", "MPL-2.0"},
	{"GNU AFFERO GENERAL PUBLIC LICENSE", "AGPL-3.0"},
	{"GNU LESSER GENERAL PUBLIC LICENSE", "LGPL-3.0"},
	{"GNU GENERAL PUBLIC LICENSE", "GPL-3.0"},
	{"free and unencumbered software", "Unlicense"},
	{"Neither the name of", "BSD-3-Clause"},
	{"Redistribution and use in source and binary forms", "BSD-2-Clause"},
	{"Permission to use, copy, modify, and/or distribute", "ISC"},
	{"Boost Software License", "BSL-1.0"},
	{"CC0 1.0 Universal", "CC0-1.0"},
}

func licenceOfFile(fsys fsx.FS, name string) string {
	b, err := fsx.ReadFile(fsys, name, 1<<20)
	if err != nil {
		return ""
	}
	text := strings.Join(strings.Fields(string(b)), " ")
	for _, l := range licenceTexts {
		if strings.Contains(text, l.words) {
			if l.id == "GPL-3.0" && strings.Contains(text, "Version 2, June 1991") {
				return "GPL-2.0"
			}
			return l.id
		}
	}
	return ""
}

var spdxLine = regexp.MustCompile(`SPDX-License-Identifier:\s*([A-Za-z0-9.+() -]+)`)

// spdxTag returns the licence that a source file names in its first 1000 bytes.
func spdxTag(text string) string {
	head := text[:min(len(text), 1000)]
	if !strings.Contains(head, "SPDX-License-Identifier:") {
		return ""
	}
	if m := spdxLine.FindStringSubmatch(head); m != nil {
		return strings.TrimSpace(m[1])
	}
	return ""
}

var versionSuffix = regexp.MustCompile(`^(.+?)-v?\d+(\.\d+)+.*$`)

// withoutVersion takes the version from a directory's name: serde-1.0.200 is serde.
func withoutVersion(name string) string {
	if m := versionSuffix.FindStringSubmatch(name); m != nil {
		return m[1]
	}
	return name
}

// groupOfPath guesses the crate or repository of a file from its path alone. It is
//
//   - the directory below the last "vendor", or the last directory whose name ends
//     in a version, without the version;
//   - else the path up to the first src, tests, benches or examples that is not at
//     its start;
//   - else its first two directories, or all it has.
func groupOfPath(name string) string {
	dirs := strings.Split(strings.Trim(strings.ReplaceAll(name, "\\", "/"), "/"), "/")
	dirs = dirs[:len(dirs)-1]
	for i := len(dirs) - 1; i >= 0; i-- {
		if i > 0 && dirs[i-1] == "vendor" || versionSuffix.MatchString(dirs[i]) {
			return withoutVersion(dirs[i])
		}
	}
	for i, d := range dirs {
		if i > 0 && (d == "src" || d == "tests" || d == "benches" || d == "examples") {
			return strings.Join(dirs[:i], "/")
		}
	}
	if len(dirs) == 0 {
		return name
	}
	return strings.Join(dirs[:min(len(dirs), 2)], "/")
}
