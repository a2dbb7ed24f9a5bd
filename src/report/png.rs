//! Plots as PNG.

use resvg::{tiny_skia, usvg};

/// Pixels for each of the drawing's.
const SCALE: f32 = 2.0;
/// Fonts that look alike; the first that is there is taken.
const FONTS: [&str; 4] = ["Arial", "Liberation Sans", "DejaVu Sans", "Noto Sans"];

/// An SVG drawing as PNG on white; `None` where it cannot be read, or this machine has no font to write its labels with.
pub fn to_png(svg: &str) -> Option<Vec<u8>> {
    let mut options = usvg::Options::default();
    let fonts = options.fontdb_mut();
    fonts.load_system_fonts();
    let families: Vec<String> = fonts.faces().flat_map(|face| face.families.iter().map(|(name, _)| name.clone())).collect();
    let family = FONTS.into_iter().find(|name| families.iter().any(|family| family == name)).or(families.first().map(String::as_str))?;
    fonts.set_sans_serif_family(family);
    let tree = usvg::Tree::from_str(svg, &options).ok()?;
    let size = tree.size().to_int_size().scale_by(SCALE)?;
    let mut picture = tiny_skia::Pixmap::new(size.width(), size.height())?;
    picture.fill(tiny_skia::Color::WHITE);
    resvg::render(&tree, tiny_skia::Transform::from_scale(SCALE, SCALE), &mut picture.as_mut());
    picture.encode_png().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Series, lines};

    #[test]
    fn a_plot_becomes_a_picture_of_twice_its_size() {
        let svg = lines("x", "y", &[Series { name: "a".into(), points: vec![(0.0, 1.0), (1.0, 2.0)] }]);
        let Some(png) = to_png(&svg) else {
            println!("skip: no fonts on this machine");
            return;
        };
        let picture = image::load_from_memory(&png).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (1120, 684));
        let dark = picture.pixels().filter(|p| p.0.iter().all(|&c| c < 140)).count();
        let blue = picture.pixels().filter(|p| p.0[2] > 120 && p.0[0] < 60).count();
        assert!(dark > 300 && blue > 500, "{dark} pixels of text, {blue} of the line");
        assert!(to_png("no drawing").is_none());
    }
}
