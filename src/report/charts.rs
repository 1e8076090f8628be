//! SVG charts with the colours of the page (light or dark).

use minijinja::HtmlEscape;
use plotters::prelude::*;

use crate::report::error::ReportError;

const SIZE: (u32, u32) = (440, 250);

/// A colour of the page. Charts are drawn with a distinct placeholder colour for each, which is then replaced by the
/// CSS colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    /// Texts and axes.
    Text,
    /// Grids.
    Grid,
    /// Series about keys.
    Key,
    /// Series about values.
    Value,
}

impl Ink {
    const ALL: [Self; 4] = [Self::Text, Self::Grid, Self::Key, Self::Value];

    fn drawn(self) -> RGBColor {
        RGBColor(1, 1, self as u8)
    }

    fn on_page(self) -> &'static str {
        match self {
            Self::Text => "currentColor",
            Self::Grid => "var(--grid)",
            Self::Key => "var(--key)",
            Self::Value => "var(--value)",
        }
    }
}

/// A series of points.
pub struct Line {
    /// Its colour.
    pub ink: Ink,
    /// Points (x, y) from left to right.
    pub points: Vec<(f64, f64)>,
    /// Whether to draw dots instead of a line.
    pub dots: bool,
    /// The texts that a browser shows over the dots, in their order; dots without a text have none.
    pub names: Vec<String>,
}

/// The labels of the axes.
pub struct Chart {
    /// Label of the x axis.
    pub across: &'static str,
    /// Label of the y axis.
    pub up: &'static str,
    /// Whether y values are exponents of ten.
    pub powers: bool,
}

impl Chart {
    /// Draws `lines` in one chart, as SVG.
    pub fn draw(&self, lines: &[Line]) -> Result<String, ReportError> {
        let mut svg = String::new();
        self.draw_into(lines, &mut svg)
            .map_err(|e| ReportError::Chart(e.to_string()))?;
        let dots = lines.iter().filter(|line| line.dots);
        svg = named(
            &svg,
            dots.flat_map(|l| (0..l.points.len()).map(|n| l.names.get(n))),
        );
        for ink in Ink::ALL {
            let RGBColor(r, g, b) = ink.drawn();
            svg = svg.replace(&format!("#{r:02X}{g:02X}{b:02X}"), ink.on_page());
        }
        Ok(svg)
    }

    fn draw_into(
        &self,
        lines: &[Line],
        svg: &mut String,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let all = || lines.iter().flat_map(|l| &l.points);
        let range = |of: fn(&(f64, f64)) -> f64| {
            let low = all().map(of).fold(f64::INFINITY, f64::min);
            let high = all().map(of).fold(f64::NEG_INFINITY, f64::max);
            (low, if high > low { high } else { low + 1.0 })
        };
        let (x, mut y) = (range(|p| p.0), range(|p| p.1));
        if !self.powers {
            y.0 = y.0.min(0.0);
            y.1 += 0.05 * (y.1 - y.0);
        }
        let text = ("sans-serif", 14).into_font().color(&Ink::Text.drawn());
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(38)
            .y_label_area_size(60)
            .build_cartesian_2d(x.0..x.1, y.0..y.1)?;
        let powers = self.powers;
        let height = move |value: &f64| match powers {
            true => format!("{:.0e}", 10f64.powf(*value)),
            false => format!("{}", (value * 1e4).round() / 1e4),
        };
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Ink::Grid.drawn())
            .axis_style(Ink::Text.drawn())
            .label_style(text.clone())
            .axis_desc_style(text)
            .x_desc(self.across)
            .y_desc(self.up)
            .x_labels(6)
            .y_labels(5)
            // Layers and ranks are integers.
            .x_label_formatter(&|value| match value.fract() == 0.0 {
                true => format!("{value:.0}"),
                false => String::new(),
            })
            .y_label_formatter(&height)
            .draw()?;
        // Thin lines if there are many.
        let width = if lines.len() > 6 { 1 } else { 2 };
        for line in lines {
            let color = line.ink.drawn();
            let points = line.points.iter().copied();
            match line.dots {
                true => {
                    chart.draw_series(points.map(|p| Circle::new(p, 3, color.filled())))?;
                }
                false => {
                    chart.draw_series(LineSeries::new(points, color.stroke_width(width)))?;
                }
            }
        }
        root.present()?;
        drop(chart);
        Ok(())
    }
}

/// `svg` with the next of `names` as the title of each circle.
fn named<'n>(svg: &str, mut names: impl Iterator<Item = Option<&'n String>>) -> String {
    let mut parts = svg.split("<circle ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str("<circle ");
        match (names.next().flatten(), part.split_once("/>")) {
            (Some(name), Some((circle, rest))) => {
                let title = HtmlEscape(name);
                text.push_str(&format!("{circle}><title>{title}</title></circle>{rest}"));
            }
            _ => text.push_str(part),
        }
    }
    text
}
