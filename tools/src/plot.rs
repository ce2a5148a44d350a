//! Figures as a small SVG: panels side by side, each with lines over a logarithmic axis (or a linear one, for time). Text is left to the viewer's own
//! fonts.

use std::io;
use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

const PANEL: (u32, u32) = (420, 340);
const TITLE_HEIGHT: u32 = 30;
/// Told apart also by those who do not tell red from green.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// One line: its name, and its points in order.
#[derive(Debug, Clone)]
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// x and y, both above 0.
    pub points: Vec<(f64, f64)>,
}

/// One diagram.
#[derive(Debug, Clone)]
pub struct Panel {
    title: String,
    x: String,
    lines: Vec<Line>,
    linear: bool,
}

impl Panel {
    /// `title` says what y is, `x` what x is.
    pub fn new(title: &str, x: &str, lines: Vec<Line>) -> Self {
        Self { title: title.to_owned(), x: x.to_owned(), lines, linear: false }
    }

    /// The same, with x at equal distances.
    #[must_use]
    pub fn linear(self) -> Self {
        Self { linear: true, ..self }
    }
}

/// The drawing was not written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}; name a file in a directory that is there")]
pub struct PlotError {
    path: PathBuf,
    reason: String,
}

impl PlotError {
    fn new(path: &Path, reason: &dyn std::fmt::Display) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Draws `panels` into a file.
///
/// # Errors
/// It cannot be written.
pub fn write(path: &Path, title: &str, panels: &[Panel]) -> Result<(), PlotError> {
    let mut svg = String::new();
    draw(&mut svg, title, panels).map_err(|error| PlotError::new(path, &error))?;
    std::fs::write(path, svg).map_err(|error: io::Error| PlotError::new(path, &error))
}

type DrawError = DrawingAreaErrorKind<io::Error>;

fn draw(svg: &mut String, title: &str, panels: &[Panel]) -> Result<(), DrawError> {
    let size = (PANEL.0 * panels.len().max(1) as u32, PANEL.1 + TITLE_HEIGHT);
    let backend = SVGBackend::with_string(svg, size);
    let area = backend.into_drawing_area();
    area.fill(&WHITE)?;
    let area = area.titled(title, ("sans-serif", 18))?;
    for (panel, area) in panels.iter().zip(area.split_evenly((1, panels.len().max(1)))) {
        draw_panel(panel, &area)?;
    }
    area.present()
}

fn draw_panel<D: DrawingBackend<ErrorType = io::Error>>(
    panel: &Panel,
    area: &DrawingArea<D, Shift>,
) -> Result<(), DrawError> {
    let points = || panel.lines.iter().flat_map(|line| line.points.iter());
    let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
    let most = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let x = (least(&mut points().map(|point| point.0)), most(&mut points().map(|point| point.0)));
    let y_max = most(&mut points().map(|point| point.1));
    if !x.0.is_finite() || x.1 <= 0.0 {
        return Ok(());
    }
    let mut chart = ChartBuilder::on(area);
    chart.caption(&panel.title, ("sans-serif", 15)).margin(12).x_label_area_size(36).y_label_area_size(58);
    let y = 0.0..y_max * 1.1;
    if panel.linear {
        draw_lines(panel, chart.build_cartesian_2d(0.0..x.1, y)?)
    } else {
        draw_lines(panel, chart.build_cartesian_2d((x.0 * 0.9..x.1 * 1.1).log_scale(), y)?)
    }
}

fn draw_lines<'a, D, X>(
    panel: &Panel,
    mut chart: ChartContext<'a, D, Cartesian2d<X, RangedCoordf64>>,
) -> Result<(), DrawError>
where
    D: DrawingBackend<ErrorType = io::Error> + 'a,
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart.configure_mesh().x_desc(&panel.x).light_line_style(WHITE.mix(0.0)).draw()?;
    for (line, colour) in panel.lines.iter().zip(COLOURS.iter().cycle()) {
        let series = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)).point_size(3);
        let drawn = chart.draw_series(series)?.label(&line.name);
        drawn.legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2)));
    }
    let labels = &mut chart.configure_series_labels();
    labels.background_style(WHITE.mix(0.8)).position(SeriesLabelPosition::UpperLeft).draw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_panel_line_and_name_is_drawn() {
        let line = |name: &str| Line { name: name.to_owned(), points: vec![(1.0, 5.0), (1000.0, 7.0)] };
        let panels = [
            Panel::new("speed", "size", vec![line("one")]),
            Panel::new("none", "size", vec![]),
            Panel::new("course", "seconds", vec![line("two")]).linear(),
        ];
        let mut svg = String::new();
        draw(&mut svg, "all of it", &panels).unwrap();
        for word in ["all of it", "speed", "size", "one", "two", "course"] {
            assert!(svg.contains(word), "{word} is missing");
        }
        let is_line = |line: &&str| line.starts_with("<polyline") && line.contains("stroke-width=\"2\"");
        assert_eq!(svg.lines().filter(is_line).count(), 4, "two lines and their legends");
    }

    #[test]
    fn a_directory_that_is_not_there_is_told() {
        let error = write(Path::new("/nowhere/at/all.svg"), "", &[]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all.svg"), "{error}");
    }
}
