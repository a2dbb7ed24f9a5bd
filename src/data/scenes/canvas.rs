//! Painting with integers.

use crate::rng::Key;
use crate::task::UNLABELLED;

/// Random numbers in the order in which they are asked for.
pub(super) struct Dice {
    key: Key,
    next: u64,
}

impl Dice {
    pub(super) fn new(key: Key) -> Self {
        Self { key, next: 0 }
    }

    /// Uniform in `low..=high`.
    pub(super) fn between(&mut self, low: i64, high: i64) -> i64 {
        self.next += 1;
        low + self.key.below(self.next - 1, (high - low + 1) as u64) as i64
    }

    /// True `chances` times in `of`.
    pub(super) fn hit(&mut self, chances: i64, of: i64) -> bool {
        self.between(1, of) <= chances
    }
}

/// A place in units of 1/128 of the scene's side, so that scenes of all sizes look alike.
#[derive(Debug, Clone, Copy)]
pub(super) struct Area {
    pub(super) left: i64,
    pub(super) top: i64,
    pub(super) right: i64,
    pub(super) bottom: i64,
}

impl Area {
    /// `width`×`height` standing on `(centre, bottom)`.
    pub(super) fn standing(centre: i64, bottom: i64, width: i64, height: i64) -> Self {
        Self { left: centre - width / 2, top: bottom - height, right: centre + (width + 1) / 2, bottom }
    }

    /// Smaller by `margin` on every side.
    pub(super) fn inside(self, margin: i64) -> Self {
        Self { left: self.left + margin, top: self.top + margin, right: self.right - margin, bottom: self.bottom - margin }
    }
}

/// Outline within an area.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Outline {
    /// All of it.
    Box,
    /// The largest ellipse.
    Ellipse,
    /// Below a line from (left, top) to (right, top + drop).
    BelowLine { drop: i64 },
    /// Above a line from (left, bottom) to (right, bottom + drop).
    AboveLine { drop: i64 },
}

/// Pattern of a paint.
#[derive(Debug, Clone, Copy)]
pub(super) enum Texture {
    Plain,
    Rows,
    Columns,
    Checks,
    /// Diagonals that fall to the left.
    FallingLeft,
    /// Diagonals that fall to the right.
    FallingRight,
    Dots,
    Grain,
}

/// Colours of what things are made of. Several classes have the same.
#[derive(Debug, Clone, Copy)]
pub(super) enum Material {
    /// Brown: floors, tables, chairs, cupboards, beds, frames.
    Wood,
    /// Pale: walls, ceilings, frames of windows, pillows, things.
    Plaster,
    /// Any middling colour: beds, sofas, seats, carpets, papered walls.
    Cloth,
    /// Pale blue: panes, vases.
    Glass,
    /// Dark: screens, lids, vases.
    Dark,
    /// Vivid, of any colour: books, pictures, things.
    Print,
}

/// Two colours, how they alternate, and how light falls over them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    colours: [[i64; 3]; 2],
    texture: Texture,
    period: i64,
    /// Change of brightness over 128 units to the right and down, in 1/256.
    light: [i64; 2],
}

impl Paint {
    /// A piece of a material with a pattern, whose period is in units.
    pub(super) fn of(material: Material, (texture, period): (Texture, i64), dice: &mut Dice) -> Self {
        let first: [i64; 3] = match material {
            Material::Wood => {
                let red = dice.between(90, 185);
                let green = red * dice.between(62, 76) / 100;
                [red, green, green * dice.between(52, 76) / 100]
            }
            Material::Plaster => {
                let pale = dice.between(150, 215);
                [0; 3].map(|_| pale + dice.between(-18, 18))
            }
            Material::Cloth => [0; 3].map(|_| dice.between(50, 170)),
            Material::Glass => {
                let pale = dice.between(140, 200);
                [pale - dice.between(10, 50), pale, pale + dice.between(15, 45)]
            }
            Material::Dark => {
                let dark = dice.between(20, 60);
                [0; 3].map(|_| dark + dice.between(-8, 8))
            }
            Material::Print => {
                // One channel high, one low, one anything: never grey.
                let (high, vivid) = (dice.between(0, 2), [dice.between(170, 230), dice.between(30, 90), dice.between(30, 230)]);
                let turned = [0, 1, 2].map(|channel| vivid[((channel + high) % 3) as usize]);
                if dice.hit(1, 2) { turned } else { [turned[0], turned[2], turned[1]] }
            }
        };
        // A pattern is seen: its colours differ in brightness, and a little in hue.
        let (apart, sign) = (dice.between(24, 56), if dice.hit(1, 2) { 1 } else { -1 });
        let second = first.map(|value| value + sign * apart + dice.between(-10, 10));
        Self { colours: [first, second], texture, period, light: [0; 2].map(|_| dice.between(-80, 80)) }
    }

    /// The same paint in other light.
    pub(super) fn lit(self, by: i64) -> Self {
        Self { colours: self.colours.map(|colour| colour.map(|value| value + by)), ..self }
    }

    /// The first colour alone.
    pub(super) fn plain(self) -> Self {
        Self { texture: Texture::Plain, ..self }
    }

    /// Colour at a place in units, `(dx, dy)` away from the middle of what is painted; `grain` is random for each pixel.
    fn at(&self, x: i64, y: i64, (dx, dy): (i64, i64), grain: u64) -> [i64; 3] {
        let half = |v: i64| v.div_euclid(self.period) & 1;
        let second = match self.texture {
            Texture::Plain => 0,
            Texture::Rows => half(y),
            Texture::Columns => half(x),
            Texture::Checks => half(x) ^ half(y),
            Texture::FallingLeft => half(x + y),
            Texture::FallingRight => half(x - y),
            Texture::Dots => {
                let from_middle = |v: i64| 2 * v.rem_euclid(2 * self.period) - 2 * self.period;
                i64::from(from_middle(x).pow(2) + from_middle(y).pow(2) < self.period.pow(2))
            }
            Texture::Grain => (grain & 1) as i64,
        };
        let light = 256 + (self.light[0] * dx + self.light[1] * dy) / 128;
        self.colours[second as usize].map(|value| value * light / 256)
    }
}

/// A scene in the making.
pub(super) struct Canvas {
    size: usize,
    /// Three values a pixel.
    colours: Vec<[i64; 3]>,
    labels: Vec<u8>,
    /// Random bits of every pixel.
    grain: Vec<u64>,
}

impl Canvas {
    /// Empty, `size`×`size` pixels.
    pub(super) fn new(size: usize) -> Self {
        Self { size, colours: vec![[0; 3]; size * size], labels: vec![UNLABELLED; size * size], grain: vec![0; size * size] }
    }

    /// Draws the random bits of every pixel.
    pub(super) fn grained(mut self, dice: &mut Dice) -> Self {
        dice.key.fill_bits(&mut self.grain);
        // What follows goes on behind them.
        dice.next = self.grain.len() as u64;
        self
    }

    /// Paints an outline and gives its pixels a label; `None` keeps the labels that are there.
    pub(super) fn fill(&mut self, outline: Outline, area: Area, paint: &Paint, label: Option<u8>) {
        let size = self.size as i64;
        let Area { left, top, right, bottom } = area;
        let (middle, width, height) = ((left + right, top + bottom), (right - left).max(1), (bottom - top).max(1));
        let (first, last) = match outline {
            Outline::AboveLine { drop } => (top, bottom + drop.max(0)),
            Outline::BelowLine { drop } => (top + drop.min(0), bottom),
            _ => (top, bottom),
        };
        let pixels = |from: i64, to: i64| (from * size).div_euclid(128).clamp(0, size)..(to * size).div_euclid(128).clamp(0, size);
        for row in pixels(first, last) {
            for column in pixels(left, right) {
                // Twice the units, at the middle of the pixel: whole numbers.
                let (x2, y2) = ((2 * column + 1) * 128 / size, (2 * row + 1) * 128 / size);
                let (dx, dy) = (x2 - middle.0, y2 - middle.1);
                let is_in = match outline {
                    Outline::Box => true,
                    Outline::Ellipse => (dx * height).pow(2) + (dy * width).pow(2) <= (width * height).pow(2),
                    Outline::BelowLine { drop } => (y2 - 2 * top) * width >= drop * (x2 - 2 * left),
                    Outline::AboveLine { drop } => (y2 - 2 * bottom) * width <= drop * (x2 - 2 * left),
                };
                if is_in {
                    let at = (row * size + column) as usize;
                    self.colours[at] = paint.at(x2 / 2, y2 / 2, (dx, dy), self.grain[at]);
                    self.labels[at] = label.unwrap_or(self.labels[at]);
                }
            }
        }
    }

    /// Takes the labels of an outline away.
    pub(super) fn unlabel(&mut self, outline: Outline, area: Area, paint: &Paint) {
        self.fill(outline, area, paint, Some(UNLABELLED));
    }

    /// Light over the whole scene, from `light` in 1/256 over its width and height.
    pub(super) fn light(&mut self, light: [i64; 2], brightness: i64) {
        let size = self.size as i64;
        for (at, colour) in self.colours.iter_mut().enumerate() {
            let (x, y) = (at as i64 % size, at as i64 / size);
            let factor = brightness + (light[0] * (2 * x - size) + light[1] * (2 * y - size)) / (2 * size);
            *colour = colour.map(|value| value * factor / 256);
        }
    }

    /// Pixels, channel by channel, with noise; and labels.
    pub(super) fn finished(self) -> (Vec<u8>, Vec<u8>) {
        let noisy = |channel: usize| {
            self.colours.iter().zip(&self.grain).map(move |(colour, bits)| {
                // Two bytes of a pixel's bits for each channel: a sum of two is less flat than one.
                let byte = |place: usize| (bits >> (8 * place) & 15) as i64;
                (colour[channel] + byte(2 * channel + 1) + byte(2 * channel + 2) - 15).clamp(0, 255) as u8
            })
        };
        ((0..3).flat_map(noisy).collect(), self.labels)
    }
}
