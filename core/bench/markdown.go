package bench

import (
	"fmt"
	"strings"
)

// parts are the generated parts of a document, in the order they are written.
var parts = []string{"machine", "targets", "roofline", "kernels", "models", "streams", "profiles", "training", "training-parts"}

// Markdown replaces the generated parts of a document by the report's tables. A
// part stands between the lines "<!-- begin NAME -->" and "<!-- end NAME -->";
// the names are machine, targets, roofline, kernels, models, streams, profiles, training and
// training-parts. A part that the
// report does not have stays as it is. A model replaces its own row only, and a
// profile its own table.
func Markdown(doc string, r *Report) (string, error) {
	for _, name := range parts {
		if !r.has(name) {
			continue
		}
		begin, end := "<!-- begin "+name+" -->", "<!-- end "+name+" -->"
		before, rest, ok1 := strings.Cut(doc, begin)
		old, after, ok2 := strings.Cut(rest, end)
		if !ok1 || !ok2 {
			return "", fmt.Errorf("bench: the document has no part %q to %q", begin, end)
		}
		doc = before + begin + "\n" + strings.TrimRight(r.part(name, old), "\n") + "\n\n" + end + after
	}
	return doc, nil
}

// has says whether the report has what a part shows.
func (r *Report) has(name string) bool {
	switch name {
	case "machine":
		return r.Format != 0
	case "targets":
		return len(r.Targets()) > 0
	case "roofline":
		return r.Roofline != nil
	case "kernels":
		return len(r.Kernels) > 0
	case "models":
		return r.Model != nil
	case "streams":
		return r.Together != nil
	case "profiles":
		return len(r.Profiles) > 0
	case "training", "training-parts":
		return r.Train != nil
	}
	return false
}

// part is the new text of a part.
func (r *Report) part(name, old string) string {
	var b strings.Builder
	switch name {
	case "machine":
		return r.machineMarkdown()
	case "targets":
		t := targetTable(r.Targets())
		t.merge(old, 2)
		t.markdown(&b)
	case "roofline":
		r.Roofline.peakTable().markdown(&b)
		r.Roofline.readTable().markdown(&b)
	case "kernels":
		kernelTable(r.Kernels).markdown(&b)
	case "models":
		t := modelTable([]*Model{r.Model})
		t.merge(old, 4)
		t.markdown(&b)
	case "streams":
		t := streamsTable([]*Streams{r.Together})
		t.merge(old, 3)
		t.markdown(&b)
	case "profiles":
		b.WriteString(mergeProfiles(old, r.Profiles))
	case "training":
		t := trainTable([]*Train{r.Train})
		t.merge(old, 5)
		t.markdown(&b)
	case "training-parts":
		t := trainPartTable(r.Train)
		b.WriteString("\n**" + t.title + "**\n")
		t.markdown(&b)
	}
	return b.String()
}

// merge puts the rows of a table in markdown in front of those of t, unless t has
// a row with the same first cells.
func (t *table) merge(old string, keys int) {
	fresh := map[string]bool{}
	for _, r := range t.rows {
		fresh[strings.Join(r[:keys], "|")] = true
	}
	var kept [][]string
	lines := 0
	for line := range strings.Lines(old) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			continue
		}
		lines++
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if lines > 2 && len(cells) == len(t.header) && !fresh[strings.Join(cells[:keys], "|")] {
			kept = append(kept, cells)
		}
	}
	t.rows = append(kept, t.rows...)
}

// mergeProfiles replaces the profiles that have the same title up to the last comma
// (the time follows it), and appends the others.
func mergeProfiles(old string, ps []Profile) string {
	key := func(title string) string { return title[:strings.LastIndex(title, ",")+1] }
	fresh := map[string]bool{}
	var b strings.Builder
	for _, p := range ps {
		fresh[key(profileTable(p).title)] = true
	}
	for _, section := range strings.Split(old, "\n**")[1:] {
		title, _, _ := strings.Cut(section, "**")
		if !fresh[key(title)] {
			b.WriteString("\n**" + strings.TrimRight(section, "\n") + "\n")
		}
	}
	for _, p := range ps {
		t := profileTable(p)
		b.WriteString("\n**" + t.title + "**\n")
		t.markdown(&b)
	}
	return b.String()
}

// machineMarkdown names the machine, the program and the moment.
func (r *Report) machineMarkdown() string {
	var b strings.Builder
	b.WriteString("\n| | |\n|---|---|\n")
	for _, p := range r.Machine.describe() {
		fmt.Fprintf(&b, "| %s | %s |\n", p[0], p[1])
	}
	fmt.Fprintf(&b, "| Program | nanochat %s %s |\n| Measured | %s |\n", r.Version, r.Commit, r.Time.Format("2006-01-02 15:04 MST"))
	if r.Command != "" {
		fmt.Fprintf(&b, "| Command | `%s` |\n", r.Command)
	}
	if r.Noise != nil {
		fmt.Fprintf(&b, "| Noise | others used %.1f %% of the processors, the host took %.1f %% |\n", r.Noise.Others, r.Noise.Steal)
	}
	return b.String()
}
