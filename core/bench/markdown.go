package bench

import (
	"fmt"
	"strings"
)

// Markdown replaces the generated parts of a document by tables of the reports. A
// part stands between the lines "<!-- begin NAME -->" and "<!-- end NAME -->";
// the names are machine, roofline, kernels and models. A part that no report has
// stays as it is. Of several reports with a roofline or kernels the last counts; every model is a
// row.
func Markdown(doc string, reports ...*Report) (string, error) {
	parts := map[string]string{}
	var models []*Model
	for _, r := range reports {
		parts["machine"] = r.machineMarkdown()
		if r.Roofline != nil {
			var b strings.Builder
			r.Roofline.peakTable().markdown(&b)
			r.Roofline.readTable().markdown(&b)
			parts["roofline"] = b.String()
		}
		if len(r.Kernels) > 0 {
			var b strings.Builder
			kernelTable(r.Kernels).markdown(&b)
			parts["kernels"] = b.String()
		}
		if r.Model != nil {
			models = append(models, r.Model)
		}
	}
	if models != nil {
		var b strings.Builder
		modelTable(models).markdown(&b)
		parts["models"] = b.String()
	}
	for _, name := range []string{"machine", "roofline", "kernels", "models"} {
		text, ok := parts[name]
		if !ok {
			continue
		}
		begin, end := "<!-- begin "+name+" -->", "<!-- end "+name+" -->"
		before, rest, ok1 := strings.Cut(doc, begin)
		_, after, ok2 := strings.Cut(rest, end)
		if !ok1 || !ok2 {
			return "", fmt.Errorf("bench: the document has no part %q to %q", begin, end)
		}
		doc = before + begin + "\n" + strings.TrimRight(text, "\n") + "\n\n" + end + after
	}
	return doc, nil
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
