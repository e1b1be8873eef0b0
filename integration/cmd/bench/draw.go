package main

import (
	"bytes"
	"fmt"
	"image/color"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	_ "gonum.org/v1/plot/vg/vgimg" // for files that end in .png
	_ "gonum.org/v1/plot/vg/vgsvg" // and in .svg
)

const (
	panelWidth   = 12 * vg.Centimeter
	panelHeight  = 9.5 * vg.Centimeter
	legendHeight = 1.9 * vg.Centimeter
	noteHeight   = 4 * vg.Millimeter
	margin       = 3 * vg.Millimeter
)

// style is that of a curve. Colours are of the set of Okabe and Ito, which people
// with any kind of colour vision can tell apart.
type style struct {
	color  color.RGBA
	width  vg.Length
	dashes []vg.Length
	shape  draw.GlyphDrawer
}

func styles() []style {
	return []style{
		{color.RGBA{213, 94, 0, 255}, 2, nil, draw.CircleGlyph{}},
		{color.RGBA{230, 159, 0, 255}, 2, nil, draw.BoxGlyph{}},
		{color.RGBA{0, 0, 0, 255}, 1, nil, draw.TriangleGlyph{}},
		{color.RGBA{110, 110, 110, 255}, 1, []vg.Length{4, 2}, draw.RingGlyph{}},
		{color.RGBA{0, 114, 178, 255}, 1, nil, draw.SquareGlyph{}},
		{color.RGBA{0, 158, 115, 255}, 1, nil, draw.PyramidGlyph{}},
	}
}

// drawing makes the plot of one server, without its legend.
func drawing(sw sweep, p panel, low, high float64) (*plot.Plot, []plot.Thumbnailer, error) {
	pl := plot.New()
	pl.Title.Text = "Grants per second of one lock\n" + p.title
	pl.X.Label.Text = "goroutines that contend for it"
	pl.Y.Label.Text = "grants/s"
	pl.X.Scale, pl.Y.Scale = plot.LogScale{}, plot.LogScale{}
	var ticks plot.ConstantTicks
	for _, n := range sw.waiters {
		ticks = append(ticks, plot.Tick{Value: float64(n), Label: thousands(n)})
	}
	pl.X.Tick.Marker = ticks
	pl.Y.Tick.Marker = plot.TickerFunc(decades)
	pl.Add(plotter.NewGrid())
	var thumbs []plot.Thumbnailer
	for i, c := range p.curves {
		points := make(plotter.XYs, len(c.rates))
		for j, rate := range c.rates {
			points[j] = plotter.XY{X: float64(sw.waiters[j]), Y: rate}
		}
		if len(points) == 0 {
			points = plotter.XYs{{X: 1, Y: low}} // for its line in the legend
		}
		line, glyphs, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, nil, err
		}
		st := styles()[i%len(styles())]
		line.Color, line.Width, line.Dashes = st.color, st.width, st.dashes
		glyphs.GlyphStyle = draw.GlyphStyle{Color: st.color, Radius: 2.5, Shape: st.shape}
		if len(c.rates) > 0 {
			pl.Add(line, glyphs)
		}
		thumbs = append(thumbs, thumbnail{line, glyphs})
	}
	pl.X.Min, pl.X.Max = float64(sw.waiters[0]), float64(sw.waiters[len(sw.waiters)-1])
	pl.Y.Min, pl.Y.Max = low, high
	small(pl)
	return pl, thumbs, nil
}

func small(pl *plot.Plot) {
	pl.Title.TextStyle.Font.Size = 11
	pl.Title.Padding = 4
	for _, a := range []*plot.Axis{&pl.X, &pl.Y} {
		a.Label.TextStyle.Font.Size = 9
		a.Tick.Label.Font.Size = 8
	}
}

// footnotes tell which curves end, and why, and what bears on all of them.
func footnotes(panels []panel) (notes []string) {
	for _, p := range panels {
		for _, c := range p.curves {
			if c.failure != nil {
				notes = append(notes, fmt.Sprintf("%s: %s, fails at %d: %s", p.product, c.name, c.failedAt, reason(c.failure)))
			}
		}
		notes = append(notes, p.product+": "+p.server)
	}
	return notes
}

// decades are ticks at 1, 2 and 5 times a power of ten.
func decades(low, high float64) (ticks []plot.Tick) {
	for ten := low; ten <= high; ten *= 10 {
		for _, v := range []float64{ten, 2 * ten, 5 * ten} {
			if v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: thousands(int(v))})
			}
		}
	}
	return ticks
}

// thousands is n as people read it.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// thumbnail is what the legend shows of a curve.
type thumbnail struct {
	line   *plotter.Line
	glyphs *plotter.Scatter
}

func (t thumbnail) Thumbnail(c *draw.Canvas) {
	t.line.Thumbnail(c)
	t.glyphs.Thumbnail(c)
}

// drawPanels writes the panels side by side, and their legend below, to a file in the
// format that its name ends in.
func drawPanels(sw sweep, panels []panel, file string) (err error) {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	low, high := limits(panels)
	plots := make([]*plot.Plot, len(panels))
	var thumbs []plot.Thumbnailer
	for i, p := range panels {
		if plots[i], thumbs, err = drawing(sw, p, low, high); err != nil {
			return err
		}
	}
	notes := footnotes(panels)
	below := margin + vg.Length(len(notes))*noteHeight + legendHeight
	width := panelWidth * vg.Length(len(panels))
	canvas, err := draw.NewFormattedCanvas(width, panelHeight+below, strings.TrimPrefix(filepath.Ext(file), "."))
	if err != nil {
		return err
	}
	all := draw.New(canvas)
	all.FillPolygon(color.White, []vg.Point{{}, {X: width}, {X: width, Y: all.Max.Y}, {Y: all.Max.Y}})
	tiles := draw.Tiles{Rows: 1, Cols: len(panels), PadX: 2 * margin}
	for i, c := range plot.Align([][]*plot.Plot{plots}, tiles, draw.Crop(all, margin, -margin, below, -margin))[0] {
		plots[i].Draw(c)
	}
	legends(panels[0].curves, thumbs, draw.Crop(all, margin, -margin, 0, -panelHeight-margin))
	noteStyle := plots[0].Title.TextStyle
	noteStyle.Font.Size, noteStyle.XAlign, noteStyle.YAlign = 8, draw.XLeft, draw.YTop
	for i, note := range notes {
		all.FillText(noteStyle, vg.Point{X: 2 * margin, Y: below - legendHeight - vg.Length(i)*noteHeight}, note)
	}
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return err
	}
	// Browsers that do not have the font are to take one of the same widths.
	text := bytes.ReplaceAll(out.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;"))
	return os.WriteFile(file, text, 0o644) //nolint:gosec // for everybody to read
}

// legends draws the names of the curves in two columns.
func legends(curves []curve, thumbs []plot.Thumbnailer, c draw.Canvas) {
	half := (len(curves) + 1) / 2
	middle := c.Size().X / 2
	for i, column := range [][2]int{{0, half}, {half, len(curves)}} {
		l := plot.NewLegend()
		l.Left, l.Top = true, true
		l.TextStyle.Font.Size = 9
		l.ThumbnailWidth = 24
		l.Padding = 3
		for j := column[0]; j < column[1]; j++ {
			l.Add(curves[j].name, thumbs[j])
		}
		l.Draw(draw.Crop(c, middle*vg.Length(i), 0, 0, 0))
	}
}
