//! Rooms and what is in them. Lengths are in 1/128 of the scene's side.

use super::canvas::Material::{Cloth, Dark, Glass, Plaster, Print, Wood};
use super::canvas::Texture::{Checks, Columns, Dots, FallingLeft, FallingRight, Grain, Plain, Rows};
use super::canvas::{Area, Canvas, Dice, Material, Outline, Paint, Texture};

const BED: u8 = 0;
const BOOKS: u8 = 1;
const CEILING: u8 = 2;
const CHAIR: u8 = 3;
const FLOOR: u8 = 4;
const FURNITURE: u8 = 5;
const OBJECTS: u8 = 6;
const PICTURE: u8 = 7;
const SOFA: u8 = 8;
const TABLE: u8 = 9;
const TV: u8 = 10;
const WALL: u8 = 11;
const WINDOW: u8 = 12;

/// Pattern of a class, in the order of the labels, with its period. One thing in ten has another's; books, frames, pillows and edges are plain.
const PATTERNS: [(Texture, i64); 13] = [
    (Checks, 3),
    (Plain, 3),
    (Dots, 3),
    (FallingLeft, 3),
    (Checks, 8),
    (Columns, 3),
    (Dots, 5),
    (FallingRight, 5),
    (Rows, 3),
    (Grain, 3),
    (Plain, 3),
    (Plain, 3),
    (Plain, 3),
];

/// Paints one thing.
struct Brush<'a> {
    canvas: &'a mut Canvas,
    dice: &'a mut Dice,
}

/// A whole room.
pub(super) fn room(canvas: Canvas, dice: &mut Dice) -> Canvas {
    let mut canvas = canvas.grained(dice);
    let mut brush = Brush { canvas: &mut canvas, dice };
    let floor = brush.shell();
    brush.on_the_wall(floor);
    brush.on_the_floor(floor);
    let paint = brush.one_of(WALL, &[Wood, Plaster, Cloth, Dark, Print]);
    for _ in 0..brush.dice.between(0, 2) {
        let (x, y, w, h) = (brush.dice.between(0, 127), brush.dice.between(0, 127), brush.dice.between(4, 9), brush.dice.between(4, 9));
        brush.canvas.unlabel(Outline::Ellipse, Area::standing(x, y, w, h), &paint);
    }
    let light = [0; 2].map(|_| dice.between(-90, 90));
    let brightness = dice.between(190, 290);
    canvas.light(light, brightness);
    canvas
}

impl Brush<'_> {
    /// A piece of one of these materials, for a thing of a class.
    fn one_of(&mut self, class: u8, materials: &[Material]) -> Paint {
        let material = materials[self.between(0, materials.len() as i64 - 1) as usize];
        let class = if self.dice.hit(1, 10) { self.between(0, 12) } else { i64::from(class) };
        Paint::of(material, PATTERNS[class as usize], self.dice)
    }

    fn between(&mut self, low: i64, high: i64) -> i64 {
        self.dice.between(low, high)
    }

    fn boxed(&mut self, area: Area, paint: &Paint, label: u8) {
        self.canvas.fill(Outline::Box, area, paint, Some(label));
    }

    /// Wall, floor and ceiling. Returns where the floor begins.
    fn shell(&mut self) -> i64 {
        let whole = Area { left: 0, top: 0, right: 128, bottom: 128 };
        let wall = self.one_of(WALL, &[Plaster, Plaster, Plaster, Cloth]);
        self.boxed(whole, &wall, WALL);
        if self.dice.hit(1, 2) {
            // A corner of the room: the same wall in other light.
            let (at, by) = (self.between(20, 108), self.between(-40, 40));
            self.boxed(Area { left: at, ..whole }, &wall.lit(by), WALL);
        }
        let (ceiling, floor) = (self.between(10, 24), self.between(66, 88));
        let (paint, drop) = (self.one_of(CEILING, &[Plaster, Plaster, Plaster, Wood]), self.between(-8, 8));
        self.canvas.fill(Outline::AboveLine { drop }, Area { bottom: ceiling, ..whole }, &paint, Some(CEILING));
        let (paint, drop) = (self.one_of(FLOOR, &[Wood, Wood, Cloth]), self.between(-8, 8));
        self.canvas.fill(Outline::BelowLine { drop }, Area { top: floor, ..whole }, &paint, Some(FLOOR));
        floor
    }

    fn on_the_wall(&mut self, floor: i64) {
        let count = self.between(1, 3);
        let mut left = self.between(2, 20);
        for _ in 0..count {
            let bottom = self.between(50, floor - 6);
            left = match self.between(0, 2) {
                0 => self.window(left, bottom),
                1 => self.picture(left, bottom),
                _ => self.screen(left, bottom),
            } + self.between(5, 16);
        }
    }

    /// A frame, panes of one light, and bars across. Returns its right side, as its neighbours do.
    fn window(&mut self, left: i64, bottom: i64) -> i64 {
        let (w, h) = (self.between(22, 34), self.between(24, 34));
        let area = Area { left, top: bottom - h, right: left + w, bottom };
        let (frame, panes) = (self.one_of(WINDOW, &[Wood, Plaster]).plain(), self.one_of(WINDOW, &[Glass]));
        self.boxed(area, &frame, WINDOW);
        self.boxed(area.inside(2), &panes.lit(30), WINDOW);
        let (x, y) = (left + w / 2, bottom - h / 2);
        self.boxed(Area { left: x - 1, right: x + 1, ..area }, &frame, WINDOW);
        self.boxed(Area { top: y - 1, bottom: y + 1, ..area }, &frame, WINDOW);
        area.right
    }

    /// A thick frame, a mount and something in it.
    fn picture(&mut self, left: i64, bottom: i64) -> i64 {
        let (w, h) = (self.between(16, 26), self.between(16, 24));
        let area = Area { left, top: bottom - h, right: left + w, bottom };
        let (frame, ground, figure) =
            (self.one_of(PICTURE, &[Wood, Dark]).plain(), self.one_of(PICTURE, &[Print, Plaster]), self.one_of(PICTURE, &[Print]));
        self.boxed(area, &frame, PICTURE);
        self.boxed(area.inside(3), &ground, PICTURE);
        self.canvas.fill(Outline::Ellipse, area.inside(5), &figure, Some(PICTURE));
        area.right
    }

    /// A wide screen with a thin edge and one reflection.
    fn screen(&mut self, left: i64, bottom: i64) -> i64 {
        let w = self.between(24, 36);
        let h = w * 9 / 16;
        let area = Area { left, top: bottom - h, right: left + w, bottom };
        let (edge, screen) = (self.one_of(TV, &[Dark, Plaster]).plain(), self.one_of(TV, &[Dark]));
        self.boxed(area, &edge, TV);
        self.boxed(area.inside(1), &screen, TV);
        self.canvas.fill(Outline::BelowLine { drop: h }, area.inside(1), &screen.lit(35), Some(TV));
        area.right
    }

    fn on_the_floor(&mut self, floor: i64) {
        let count = self.between(3, 5);
        // From the back to the front: nearer things are larger and hide others.
        for place in 0..count {
            let bottom = floor + 8 + (124 - floor - 8) * (place + 1) / count;
            let (x, scale) = (self.between(8, 120), 50 + (bottom - floor));
            match self.between(0, 6) {
                0 | 1 => self.bed_or_sofa(x, bottom, scale),
                2 => self.chair(x, bottom, scale),
                3 | 4 => self.table(x, bottom, scale),
                5 => self.cupboard(x, bottom, scale),
                _ => self.objects(x, bottom, scale),
            }
        }
    }

    fn bed_or_sofa(&mut self, x: i64, bottom: i64, scale: i64) {
        let of = |length: i64| length * scale / 64;
        let (is_bed, w) = (self.dice.hit(1, 2), self.between(of(40), of(54)));
        let cloth = self.one_of(if is_bed { BED } else { SOFA }, &[Cloth]);
        if is_bed {
            // A bed from its side: headboard at one end, a low mattress, a pillow.
            let side = if self.dice.hit(1, 2) { 1 } else { -1 };
            let (head, frame, pillow) = (x + side * w / 2, self.one_of(BED, &[Wood, Wood, Cloth]), self.one_of(BED, &[Plaster]).plain());
            self.boxed(Area::standing(head, bottom, of(4).max(2), of(26)), &frame, BED);
            self.boxed(Area::standing(x, bottom, w, of(8)), &frame.lit(-20), BED);
            self.boxed(Area::standing(x, bottom - of(6), w, of(9)), &cloth, BED);
            let area = Area::standing(head - side * of(8), bottom - of(13), of(13), of(6));
            self.canvas.fill(Outline::Ellipse, area, &pillow, Some(BED));
        } else {
            // A sofa from the front: a back, two cushions, two arms.
            self.boxed(Area::standing(x, bottom - of(3), w, of(24)), &cloth, SOFA);
            self.boxed(Area::standing(x - w / 4, bottom - of(3), w / 2 - 1, of(11)), &cloth.lit(25), SOFA);
            self.boxed(Area::standing(x + w / 4, bottom - of(3), w / 2 - 1, of(11)), &cloth.lit(25), SOFA);
            for side in [-1, 1] {
                let arm = Area::standing(x + side * w / 2, bottom, of(7), of(17));
                self.boxed(arm, &cloth.lit(-25), SOFA);
            }
        }
    }

    fn chair(&mut self, x: i64, bottom: i64, scale: i64) {
        let of = |length: i64| (length * scale / 64).max(2);
        let (wood, seat) = (self.one_of(CHAIR, &[Wood, Wood, Dark]), self.one_of(CHAIR, &[Wood, Cloth]));
        let w = of(20);
        for side in [-1, 1] {
            self.boxed(Area::standing(x + side * (w / 2 - 1), bottom, of(3), of(14)), &wood, CHAIR);
        }
        // From the side or the front: a post or a whole back.
        if self.dice.hit(1, 2) {
            self.boxed(Area::standing(x, bottom - of(14), w, of(20)), &wood.lit(15), CHAIR);
        } else {
            let side = if self.dice.hit(1, 2) { 1 } else { -1 };
            self.boxed(Area::standing(x + side * (w / 2 - 1), bottom - of(14), of(4), of(20)), &wood.lit(15), CHAIR);
        }
        self.boxed(Area::standing(x, bottom - of(12), w + 2, of(5)), &seat, CHAIR);
    }

    fn table(&mut self, x: i64, bottom: i64, scale: i64) {
        let of = |length: i64| (length * scale / 64).max(2);
        let wood = self.one_of(TABLE, &[Wood, Wood, Plaster]);
        let w = self.between(of(36), of(50));
        let h = of(20);
        for side in [-1, 1] {
            self.boxed(Area::standing(x + side * (w / 2 - of(3)), bottom, of(4), h), &wood.lit(-20), TABLE);
        }
        self.boxed(Area::standing(x, bottom - h + of(1), w, of(7)), &wood, TABLE);
        let top = bottom - h - of(6);
        match self.between(0, 3) {
            0 | 1 => self.books(x - w / 4, top, scale),
            _ => self.objects(x - w / 4, top, scale),
        }
        match self.between(0, 3) {
            0 => self.books(x + w / 4, top, scale),
            1 => self.objects(x + w / 4, top, scale),
            2 => drop(self.screen(x, top)),
            _ => {}
        }
    }

    /// Tall, with doors or with shelves of books.
    fn cupboard(&mut self, x: i64, bottom: i64, scale: i64) {
        let of = |length: i64| (length * scale / 64).max(1);
        let wood = self.one_of(FURNITURE, &[Wood, Wood, Plaster]);
        let (w, h) = (self.between(of(26), of(36)), self.between(of(44), of(60)));
        let area = Area::standing(x, bottom, w, h);
        self.boxed(area, &wood, FURNITURE);
        if self.dice.hit(1, 2) {
            let line = wood.lit(-50).plain();
            self.boxed(Area { left: x, right: x + 1, ..area.inside(2) }, &line, FURNITURE);
            for side in [-1, 1] {
                self.boxed(Area::standing(x + side * 3, bottom - h / 2, 1, of(4)), &line, FURNITURE);
            }
        } else {
            self.boxed(area.inside(of(2)), &wood.lit(-45).plain(), FURNITURE);
            let shelves = 3;
            for shelf in 1..=shelves {
                let y = area.bottom - of(3) - (h - of(4)) * (shelves - shelf) / shelves;
                self.boxed(Area { top: y, bottom: y + of(2), ..area }, &wood, FURNITURE);
                if self.dice.hit(2, 3) {
                    self.books(x, y, scale);
                }
            }
        }
    }

    /// Backs of books, side by side.
    fn books(&mut self, x: i64, bottom: i64, scale: i64) {
        let of = |length: i64| (length * scale / 64).max(2);
        let count = self.between(5, 7);
        let w = of(3);
        for i in 0..count {
            let (paint, h) = (self.one_of(BOOKS, &[Print]).plain(), self.between(of(10), of(14)));
            let left = x - count * w / 2 + i * w;
            self.boxed(Area { left, top: bottom - h, right: left + w, bottom }, &paint, BOOKS);
        }
    }

    /// A ball, a vase, or a box with a lid.
    fn objects(&mut self, x: i64, bottom: i64, scale: i64) {
        let of = |length: i64| (length * scale / 64).max(2);
        let paint = self.one_of(OBJECTS, &[Print, Plaster, Glass, Dark]);
        let size = self.between(of(11), of(17));
        match self.between(0, 2) {
            0 => self.canvas.fill(Outline::Ellipse, Area::standing(x, bottom, size, size), &paint, Some(OBJECTS)),
            1 => {
                self.canvas.fill(Outline::Ellipse, Area::standing(x, bottom, size * 3 / 4, size), &paint, Some(OBJECTS));
                self.boxed(Area::standing(x, bottom - size * 3 / 4, of(4), size * 3 / 4), &paint.lit(15), OBJECTS);
            }
            _ => {
                self.boxed(Area::standing(x, bottom, size, size * 2 / 3), &paint, OBJECTS);
                self.boxed(Area::standing(x, bottom - size * 2 / 3, size + of(2), of(3)), &paint.lit(30), OBJECTS);
            }
        }
    }
}
