//! Plots as SVG text.

use crate::metrics::{mean_and_std, spread};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Size of a plot in pixels, without its legend. A page shows it about as large.
const SIZE: (u32, u32) = (560, 320);
/// Left of an axis and below it: labels, and what they are of.
const LEFT: u32 = 68;
const BELOW: u32 = 44;
const MARGIN: u32 = 8;
/// All that is written; SVG has 16 / 1.24 pixels.
const TEXT: (&str, u32, &RGBColor) = ("sans-serif", 16, &INK);
/// Height of a line of a legend.
const LINE: u32 = 22;
/// Width of a letter, about: what is written by a browser has the browser's font.
const LETTER: f64 = 8.0;
/// What stands before a name in a legend.
const SAMPLE: i32 = 22;
/// The longest name below a bar.
const TURNED: i32 = 140;
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
    let names: Vec<String> = drawn.iter().map(|series| cut(&series.name, SIZE.0 as i32 - 80)).collect();
    let places = legend(&names);
    let lines = places.last().map_or(0, |(_, line)| line + 1);
    to_svg((SIZE.0, SIZE.1 + lines * LINE), |whole| {
        let (area, below_it) = whole.split_vertically(SIZE.1);
        let mut chart = ChartBuilder::on(&area)
            .margin(MARGIN)
            .x_label_area_size(BELOW)
            .y_label_area_size(LEFT)
            .build_cartesian_2d(x0..(if x1 > x0 { x1 } else { x0 + 1.0 }), below..above)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12))
            .axis_style(INK.mix(0.6))
            .label_style(TEXT)
            .x_desc(x_label)
            .y_desc(y_label)
            .y_label_formatter(&|v| label(*v, above - below))
            .x_label_formatter(&|v| label(*v, x1 - x0))
            .draw()?;
        for (series, colour) in drawn.iter().zip(COLOURS.iter().cycle()) {
            if series.points.len() > 1 {
                chart.draw_series(LineSeries::new(series.points.iter().copied(), colour.stroke_width(2)))?;
            }
            if series.points.len() <= MARKED {
                chart.draw_series(series.points.iter().map(|&at| Circle::new(at, 3, colour.filled())))?;
            }
        }
        // Below the plot, where no name covers a curve.
        for (((x, line), name), colour) in places.iter().zip(&names).zip(COLOURS.iter().cycle()) {
            let y = (line * LINE) as i32 + 6;
            below_it.draw(&PathElement::new([(*x, y), (x + SAMPLE - 6, y)], colour.stroke_width(2)))?;
            below_it.draw(&Text::new(name.as_str(), (x + SAMPLE, y - 6), TEXT.into_text_style(&below_it)))?;
        }
        Ok(())
    })
}

/// A name that is wider than its place, cut.
fn cut(name: &str, room: i32) -> String {
    let most = (f64::from(room) / LETTER) as usize;
    if name.chars().count() <= most { name.to_owned() } else { name.chars().take(most - 1).chain(['…']).collect() }
}

fn width(name: &str) -> i32 {
    (LETTER * name.chars().count() as f64).ceil() as i32
}

/// Where each name of a legend stands: pixels from the left, and line.
fn legend(names: &[String]) -> Vec<(i32, u32)> {
    let (left, right) = (40, SIZE.0 as i32 - 8);
    let (mut x, mut line) = (left, 0);
    let mut places = Vec::new();
    for name in names {
        let wide = SAMPLE + width(name);
        if x > left && x + wide > right {
            (x, line) = (left, line + 1);
        }
        places.push((x, line));
        x += wide + 20;
    }
    places
}

/// A row for each name with a dot for every value, and their mean with a bar of one sample standard deviation to either side; written with
/// `digits` behind the point.
pub fn dots(x_label: &str, digits: usize, rows: &[(String, Vec<f64>)]) -> String {
    let rows: Vec<&(String, Vec<f64>)> = rows.iter().filter(|(_, values)| !values.is_empty()).collect();
    let all = || rows.iter().flat_map(|(_, values)| values.iter().copied());
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if rows.is_empty() {
        return String::new();
    }
    let pad = if high > low { 0.1 * (high - low) } else { 0.5 };
    let names = rows.iter().map(|(name, _)| width(name)).max().unwrap_or(0).min(SIZE.0 as i32 / 2);
    let means: Vec<String> = rows.iter().map(|(_, values)| spread(values, digits)).collect();
    let right = means.iter().map(|text| width(text)).max().unwrap_or(0) + 16;
    let plot = SIZE.0 as i32 - names - 16 - right - MARGIN as i32;
    to_svg((SIZE.0, BELOW + 2 * MARGIN + (LINE + 8) * rows.len() as u32), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(MARGIN)
            .margin_right(right)
            .x_label_area_size(BELOW)
            .y_label_area_size(names + 16)
            .build_cartesian_2d(low - pad..high + pad, rows.len() as f64..0.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12))
            .axis_style(INK.mix(0.6))
            .label_style(TEXT)
            .x_labels((plot / 56).max(3) as usize)
            .y_labels(0)
            .x_desc(x_label)
            .x_label_formatter(&|v| label(*v, high - low + 2.0 * pad))
            .draw()?;
        for (i, ((name, values), shown)) in rows.iter().zip(means).enumerate() {
            let y = i as f64 + 0.5;
            let (mean, std) = mean_and_std(values);
            if let Some(std) = std {
                chart.draw_series([PathElement::new([(mean - std, y), (mean + std, y)], COLOURS[0].stroke_width(2))])?;
            }
            chart.draw_series(values.iter().map(|&value| Circle::new((value, y), 3, COLOURS[0].mix(0.35).filled())))?;
            chart.draw_series([Circle::new((mean, y), 5, COLOURS[0].filled())])?;
            let at = chart.backend_coord(&(low - pad, y)).1 - 6;
            let text = |text: String, x: i32| area.draw(&Text::new(text, (x, at), TEXT.into_text_style(area)));
            text(cut(name, names), MARGIN as i32)?;
            text(shown, SIZE.0 as i32 - right + 8)?;
        }
        Ok(())
    })
}

/// Vertical bars, a name below each as far as there is room, on an axis up to `top`: the largest of all values that they stand beside.
pub fn bars(y_label: &str, names: &[String], values: &[f64], top: f64) -> String {
    let (Some(last), top) = (values.len().checked_sub(1), 1.08 * top.max(1e-9)) else { return String::new() };
    let names: Vec<String> = names.iter().map(|name| cut(name, TURNED)).collect();
    let longest = names.iter().map(|name| width(name)).max().unwrap_or(0);
    let upright = values.len().div_ceil(12);
    let is_turned = longest + 6 > (SIZE.0 - LEFT - 2 * MARGIN) as i32 * upright as i32 / values.len() as i32;
    let (every, below) = if is_turned { (values.len().div_ceil(24), longest as u32 + 14) } else { (upright, 28) };
    to_svg((SIZE.0, SIZE.1 - BELOW + below), |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(MARGIN)
            .x_label_area_size(below)
            .y_label_area_size(LEFT)
            .build_cartesian_2d((0..last).into_segmented(), 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12))
            .axis_style(INK.mix(0.6))
            .label_style(TEXT)
            .x_labels(values.len())
            .x_label_formatter(&|_| String::new())
            .y_desc(y_label)
            .y_label_formatter(&|v| label(*v, top))
            .draw()?;
        // Not the mesh's own labels: turned, they would stand across the axis.
        for (i, name) in names.iter().enumerate().step_by(every) {
            let (x, axis) = chart.backend_coord(&(SegmentValue::CenterOf(i), 0.0));
            let style = TEXT.into_text_style(area).pos(Pos::new(HPos::Center, VPos::Top));
            let turned = style.pos(Pos::new(HPos::Right, VPos::Center)).transform(FontTransform::Rotate270);
            area.draw(&Text::new(name.as_str(), (x, axis + 9), if is_turned { turned } else { style }))?;
        }
        // Not plotters' Histogram, which draws in the order of a hash map: the same page is to have the same bytes.
        chart.draw_series(values.iter().enumerate().map(|(i, &value)| {
            let right = if i + 1 < values.len() { SegmentValue::Exact(i + 1) } else { SegmentValue::Last };
            let corners = [(SegmentValue::Exact(i), 0.0), (right, value)];
            let mut bar = Rectangle::new(corners, COLOURS[0].filled());
            bar.set_margin(0, 0, 2, 2);
            bar
        }))?;
        Ok(())
    })
}

fn to_svg(size: (u32, u32), draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn std::error::Error>>) -> String {
    let mut text = String::new();
    let outcome = {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&area).and_then(|()| Ok(area.present()?))
    };
    if let Err(error) = outcome {
        tracing::warn!(%error, "a plot could not be drawn");
        return String::new();
    }
    // A view box lets the page scale it.
    text.replacen(&format!("<svg width=\"{}\" height=\"{}\"", size.0, size.1), "<svg", 1)
}

/// A label of an axis that spans `span`.
fn label(value: f64, span: f64) -> String {
    match span {
        _ if value.abs() >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        _ if span >= 8.0 => format!("{value:.0}"),
        _ if span >= 0.8 => format!("{value:.1}"),
        _ if span >= 0.08 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_and_bars_are_svg_with_their_labels() {
        let curve = Series { name: "a".into(), points: vec![(0.0, 1.0), (1.0, 3.0)] };
        assert!(lines("x", "y", std::slice::from_ref(&curve)).contains(">\na\n<"), "a line alone has its name too");
        let other = Series { name: "b".into(), points: vec![(0.0, 2.0)] };
        let svg = lines("round", "loss", &[curve, other]);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.starts_with("<svg") && svg.contains("viewBox") && svg.contains("round") && svg.contains(">\nb\n<"), "{svg}");
        assert_eq!(lines("x", "y", &[]), "");
    }

    /// Numbers of an attribute, in the order of the file.
    fn numbers(svg: &str, element: &str, attribute: &str) -> Vec<f64> {
        let of = |tag: &str| Some(tag.split(&format!(" {attribute}=\"")).nth(1)?.split('"').next()?.parse().unwrap());
        svg.split('<').filter(|tag| tag.starts_with(element)).filter_map(of).collect()
    }

    #[test]
    fn bars_fill_the_axis_from_end_to_end() {
        for values in [vec![1.0, 2.0, 1.5], vec![3.0]] {
            let labels: Vec<String> = values.iter().map(|v| format!("l{v}")).collect();
            let svg = bars("n", &labels, &values, 3.0);
            let bars: Vec<(f64, f64)> =
                numbers(&svg, "rect", "x").into_iter().zip(numbers(&svg, "rect", "width")).filter(|(_, wide)| *wide > 4.0).collect();
            assert_eq!(bars.len(), values.len(), "{svg}");
            let ((first, _), (last, wide)) = (bars[0], bars[bars.len() - 1]);
            assert!(first < 80.0 && last + wide > 545.0, "{first} to {}: {svg}", last + wide);
        }
    }

    /// Half the common top is half the height; names that do not fit side by side are turned, and of many some are left out.
    #[test]
    fn bars_of_several_plots_have_one_scale_and_names_that_can_be_read() {
        let names = |count: usize, name: &str| (0..count).map(|i| format!("{name}{i}")).collect::<Vec<_>>();
        let height = |top: f64| numbers(&bars("n", &names(2, "l"), &[4.0, 4.0], top), "rect", "height").into_iter().fold(0.0, f64::max);
        assert!((height(4.0) / height(8.0) - 2.0).abs() < 0.02, "{} and {}", height(4.0), height(8.0));
        let svg = |count: usize, name: &str| bars("n", &names(count, name), &vec![1.0; count], 1.0);
        let turned = |svg: &str| svg.matches("rotate(270").count() - 1;
        assert_eq!((turned(&svg(10, "l")), turned(&svg(10, "ankle boot ")), turned(&svg(100, "l"))), (0, 10, 0));
        assert_eq!(turned(&svg(100, "ankle boot ")), 20);
        assert_eq!(bars("n", &[], &[], 1.0), "");
    }

    #[test]
    fn long_names_stand_below_the_curves() {
        let series = |name: &str| Series { name: name.into(), points: vec![(0.0, 1.0), (1.0, 2.0)] };
        let long = "method=fast_meta inversion.steps=10 inversion.lr_generator=0.002 train.rounds=54 train.warmup_rounds=16";
        let svg = lines("x", "y", &[series(long), series("b"), series("c")]);
        assert!(svg.contains("viewBox=\"0 0 560 364\"") && svg.contains('…'), "{svg}");
        let at = |name: &str| svg.split("<text").find(|text| text.contains(&format!(">\n{name}\n<"))).unwrap();
        assert!(numbers(&format!("<text{}", at("b")), "text", "y")[0] > 300.0);
    }

    #[test]
    fn dots_show_every_value_and_their_spread() {
        let svg = dots("top-1, %", 2, &[("a".into(), vec![80.0, 82.0]), ("none yet".into(), vec![]), ("b".into(), vec![79.0])]);
        assert_eq!((svg.matches("<circle").count(), svg.contains("none yet")), (5, false));
        assert!(svg.contains("81.00 ± 1.41") && svg.contains(">\n79.00\n<"), "{svg}");
        assert_eq!(dots("x", 2, &[]), "");
    }
}
