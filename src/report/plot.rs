//! Plots as SVG text.

use plotters::coord::Shift;
use plotters::prelude::*;

/// Size of a plot in pixels.
const SIZE: (u32, u32) = (560, 300);
/// Colours that stay apart for colour-blind readers (Okabe & Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
/// Curves of so few points show each of them: a single one would be invisible.
const MARKED: usize = 20;
const INK: RGBColor = RGBColor(60, 64, 72);

/// One line of a plot.
pub struct Series {
    /// Shown in the legend.
    pub name: String,
    /// (x, y), in order of x.
    pub points: Vec<(f64, f64)>,
}

/// Curves over a common axis; empty text when there is nothing to draw.
pub fn lines(x_label: &str, y_label: &str, series: &[Series]) -> String {
    let drawn: Vec<&Series> = series.iter().filter(|s| !s.points.is_empty()).collect();
    let all = || drawn.iter().flat_map(|s| s.points.iter().copied());
    if all().next().is_none() {
        return String::new();
    }
    let range = |of: fn((f64, f64)) -> f64| all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), v| (lo.min(v), hi.max(v)));
    let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
    let pad = |lo: f64, hi: f64| if hi > lo { 0.05 * (hi - lo) } else { 0.5 };
    let (below, above) = (y0 - pad(y0, y1), y1 + pad(y0, y1));
    to_svg(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(x0..(if x1 > x0 { x1 } else { x0 + 1.0 }), below..above)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12))
            .axis_style(INK.mix(0.6))
            .label_style(("sans-serif", 12, &INK))
            .x_desc(x_label)
            .y_desc(y_label)
            .y_label_formatter(&|v| short(*v))
            .x_label_formatter(&|v| short(*v))
            .draw()?;
        for (series, colour) in drawn.iter().zip(COLOURS.iter().cycle()) {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(series.points.iter().copied(), style))?
                .label(series.name.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
            if series.points.len() <= MARKED {
                chart.draw_series(series.points.iter().map(|&at| Circle::new(at, 3, colour.filled())))?;
            }
        }
        if drawn.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperRight)
                .background_style(WHITE.mix(0.85))
                .border_style(TRANSPARENT)
                .label_font(("sans-serif", 12, &INK))
                .draw()?;
        }
        Ok(())
    })
}

/// Vertical bars with a label below each.
pub fn bars(y_label: &str, labels: &[String], values: &[f64]) -> String {
    if values.is_empty() {
        return String::new();
    }
    let top = values.iter().copied().fold(0.0, f64::max).max(1e-9) * 1.08;
    let crowded = labels.len().div_ceil(12).max(1);
    to_svg(|area| {
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d((0..values.len()).into_segmented(), 0.0..top)?;
        let name = |at: &SegmentValue<usize>| match at {
            SegmentValue::CenterOf(i) if i.is_multiple_of(crowded) => labels.get(*i).cloned().unwrap_or_default(),
            _ => String::new(),
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12))
            .axis_style(INK.mix(0.6))
            .label_style(("sans-serif", 11, &INK))
            .x_labels(values.len())
            .x_label_formatter(&name)
            .y_desc(y_label)
            .y_label_formatter(&|v| short(*v))
            .draw()?;
        // Not plotters' Histogram, which draws in the order of a hash map: the same page is to have the same bytes.
        chart.draw_series(values.iter().enumerate().map(|(i, &value)| {
            let corners = [(SegmentValue::Exact(i), 0.0), (SegmentValue::Exact(i + 1), value)];
            let mut bar = Rectangle::new(corners, COLOURS[0].filled());
            bar.set_margin(0, 0, 2, 2);
            bar
        }))?;
        Ok(())
    })
}

fn to_svg(draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn std::error::Error>>) -> String {
    let mut text = String::new();
    let outcome = {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(&area).and_then(|()| Ok(area.present()?))
    };
    if let Err(error) = outcome {
        tracing::warn!(%error, "a plot could not be drawn");
        return String::new();
    }
    // A view box lets the page scale it.
    text.replacen("<svg width=\"560\" height=\"300\"", "<svg", 1)
}

fn short(value: f64) -> String {
    let size = value.abs();
    if size >= 10_000.0 {
        format!("{:.0}k", value / 1000.0)
    } else if size >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if size >= 1.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_and_bars_are_svg_with_their_labels() {
        let curve = Series { name: "a".into(), points: vec![(0.0, 1.0), (1.0, 3.0)] };
        let other = Series { name: "b".into(), points: vec![(0.0, 2.0)] };
        let svg = lines("round", "loss", &[curve, other]);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.starts_with("<svg") && svg.contains("viewBox") && svg.contains("round") && svg.contains(">\nb\n<"), "{svg}");
        assert!(bars("n", &["x".into(), "y".into()], &[1.0, 2.0]).contains("<rect"));
        assert_eq!(lines("x", "y", &[]), "");
    }
}
