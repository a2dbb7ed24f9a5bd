//! Everything a run is made of, and what each part of a round does to it.

use super::guard::{Guard, Verdict};
use crate::checkpoint::{Contents, Loaded, Position};
use crate::config::{self, Config, Job, ModelName, Plan, Precision};
use crate::data::{self, Examples, Facts, Normalise};
use crate::distill::{Student, learning_rate};
use crate::error::Result;
use crate::eval::{self, Score, Source, Test};
use crate::files;
use crate::inversion::{
    self, Batch, Before, COLUMNS, Call, Contrast, Local, Networks, Samples, Settings, SharedGenerator, Synthesis, Term,
};
use crate::layout::LogicalRank;
use crate::losses::StatisticsAverage;
use crate::methods::{self, Method};
use crate::metrics::{RoundRecord, Sent};
use crate::models::{self, Network, Shape};
use crate::nn::weights::bytes_of;
use crate::nn::{Entries, Pass, State, Stateful, layer_values, room_for};
use crate::parallel::{PerRank, World};
use crate::replay::{Draw, Memory, Moved, RealData, Replay, SampleShape};
use crate::rng::{Key, Purpose};
use crate::run_folder::Inputs;
use crate::task::Task;
use crate::teacher::Teacher;
use tch::{Device, Kind, Tensor};

/// A training run as one process holds it.
pub struct Run {
    /// Merged configuration.
    pub config: Config,
    /// Derived numbers.
    pub plan: Plan,
    /// How the student is trained.
    pub method: Method,
    /// The data set's facts.
    pub facts: Facts,
    /// Its normalisation.
    pub normalise: Normalise,
    /// The frozen teacher, where the method has one.
    pub teacher: Option<Teacher>,
    /// The network in training.
    pub student: Student,
    /// The shared generator, where the method has one.
    pub generator: Option<SharedGenerator>,
    /// What inversion keeps of each logical rank, never reduced.
    pub locals: PerRank<Local>,
    /// Where rows come from.
    pub memory: Memory,
    /// The least memory that an inner loop takes on one rank, where the method has one.
    pub inversion_bytes: Option<f64>,
    /// The least memory that a student step takes on one rank.
    pub step_bytes: f64,
    /// What the student is scored by.
    pub test: Test,
    /// How far the run is.
    pub cursor: Cursor,
    /// Non-finite policy.
    pub guard: Guard,
    /// What this round has summed up so far.
    pub sums: PerRank<RoundSums>,
    /// What draws have sent from this process since its start.
    pub moved: Moved,
    /// What they had sent from all processes in earlier launches.
    pub moved_before: Moved,
    /// What rank 0 had sent in earlier launches.
    pub sent_before: Sent,
}

/// Position of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    round: u64,
    inverted: bool,
    steps_left: u64,
    student_steps: u64,
}

impl Cursor {
    /// Round, from 0.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Student steps since the start.
    pub fn student_steps(&self) -> u64 {
        self.student_steps
    }

    pub(super) fn at_inversion(&self) -> bool {
        !self.inverted
    }

    pub(super) fn inverted(&mut self, steps: u64) {
        (self.inverted, self.steps_left) = (true, steps);
    }

    pub(super) fn in_round(&self) -> bool {
        self.steps_left > 0
    }

    pub(super) fn stepped(&mut self) {
        self.steps_left -= 1;
        self.student_steps += 1;
    }

    pub(super) fn next_round(&mut self) {
        self.round += 1;
        self.inverted = false;
    }
}

/// Sums over one round of one logical rank, where the tensors live: nothing is read back before the round ends.
pub struct RoundSums {
    /// Inversion terms of the last inner step, by column.
    terms: Tensor,
    /// Weighted and unweighted loss over all rows.
    losses: Tensor,
    /// Inversions and rows summed up: those that were applied.
    counts: [u64; 2],
}

impl RoundSums {
    fn new(device: Device) -> Self {
        let zeros = |n: i64| Tensor::zeros([n], (Kind::Double, device));
        Self { terms: zeros(COLUMNS as i64), losses: zeros(2), counts: [0; 2] }
    }

    pub(super) fn inverted(&mut self, terms: Tensor) {
        (self.terms, self.counts[0]) = (terms, 1);
    }

    pub(super) fn distilled(&mut self, sums: &Tensor, rows: usize) {
        let _ = self.losses.g_add_(sums);
        self.counts[1] += rows as u64;
    }

    /// Terms, losses, counts: all f64.
    fn bits(&self) -> [u64; COLUMNS + 4] {
        let mut values = Vec::<f64>::try_from(Tensor::cat(&[&self.terms, &self.losses], 0)).unwrap_or_default();
        values.extend(self.counts.map(|n| n as f64));
        std::array::from_fn(|i| values.get(i).copied().unwrap_or_default().to_bits())
    }
}

impl Stateful for RoundSums {
    fn save(&self, into: &mut Entries) {
        into.tensor("terms", &self.terms);
        into.tensor("losses", &self.losses);
        into.numbers("counts", &self.counts);
    }

    fn load(&mut self, from: &Entries) -> Result<()> {
        // `terms` may be shared with what a step returned: a tensor of its own is filled.
        self.terms = self.terms.zeros_like();
        from.copy_tensor("terms", &self.terms)?;
        from.copy_tensor("losses", &self.losses)?;
        let counts = from.read_numbers("counts")?;
        self.counts = [0, 1].map(|i| counts.get(i).copied().unwrap_or_default());
        Ok(())
    }
}

/// Images of a split that are looked at to tell it from another.
const MARKED: usize = 64;

/// Tells one split from another: how many images there are, and some of them, evenly spread, with their labels.
fn mark(split: &Examples) -> String {
    let places: Vec<u64> = (0..split.len()).step_by(split.len().div_ceil(MARKED).max(1)).map(|place| place as u64).collect();
    if places.is_empty() {
        return String::new();
    }
    let (images, labels) = split.rows(&places);
    files::sha256(&[split.len().to_string().into_bytes(), bytes_of(&images), bytes_of(&labels)].concat())
}

impl Run {
    /// Builds everything a method needs. `teacher` is checked already; `real` is there for methods that train on real data; the test
    /// split is read here.
    pub fn new(
        config: Config,
        mut plan: Plan,
        method: Method,
        mut teacher: Option<Teacher>,
        real: Option<RealData>,
        world: &World,
    ) -> Result<Self> {
        let facts = data::facts_of(&config);
        let (device, precision) = (world.device(), config.train.precision);
        let shape = Shape { channels: facts.channels, classes: facts.classes };
        let network = models::build(config.student.model, shape);
        let state = State::initialised(network.blueprint(), config.seed, Purpose::StudentInit, device);
        if let Some(path) = &config.student.backbone {
            models::load_backbone(&*network, &state, path)?;
        }
        let mut student = Student::new(network, state, config.student.momentum, config.student.weight_decay)?;
        let size = real.as_ref().map_or(facts.size, RealData::size);
        let size_key = if size == facts.size { "data.size" } else { "teach.crop" };
        models::check_size(student.frozen().0, config.student.model, size_key, size)?;
        if let Some(teacher) = &teacher {
            models::check_size(teacher.parts().0, config.teacher.model, size_key, size)?;
        }
        let shape_of = |images: usize, [h, w]: [i64; 2]| [images as i64, facts.channels, h, w];
        let inversion_bytes = match (&teacher, method.recipe) {
            (Some(teacher), Some(_)) => {
                let images = shape_of(config.inversion.batch_size, facts.size);
                Some(room_for_layers("inversion.batch_size", config.teacher.model, teacher.parts(), images, precision, world)?)
            }
            _ => None,
        };
        let (step_key, rows) = plan.job.batch(&config);
        let images = shape_of(rows / plan.layout.logical_ranks(), size);
        let step_bytes = room_for_layers(step_key, config.student.model, student.frozen(), images, precision, world)?;
        let memory = match (real, method.memory) {
            (Some(data), _) => Memory::Real(data),
            (None, methods::Memory::Fresh) => Memory::Fresh,
            (None, _) => {
                let image = vec![facts.channels, facts.size[0], facts.size[1]];
                let head = teacher.as_ref().map_or_else(|| vec![facts.classes], |t| t.head_shape(facts.channels, facts.size));
                let view_logits = [vec![config.distill.teacher_views as i64], head].concat();
                let shape = SampleShape { image, view_logits, classes: facts.classes as usize };
                let rule = method.buffer(&config, plan.images_per_round);
                Memory::Replay(Replay::new(method.capacity_key(), &rule, &config.distill, config.seed, shape, world)?)
            }
        };
        let mut generator = match method.recipe.map(|recipe| recipe.synthesis) {
            Some(Synthesis::Generator { .. }) => {
                Some(SharedGenerator::new(&config.generator, &config.inversion, &facts, config.seed, device)?)
            }
            Some(Synthesis::Pixels) | None => None,
        };
        student.compute_in(precision);
        teacher.iter_mut().for_each(|teacher| teacher.compute_in(precision));
        generator.iter_mut().for_each(|generator| generator.compute_in(precision));
        let mut locals = PerRank::default();
        for rank in world.hosted() {
            locals.set(rank, local(&config, &plan, &method, teacher.as_ref(), device)?);
        }
        let test = Test::of(&config)?;
        let marks: String = test.examples().into_iter().chain(memory.real().map(RealData::examples)).map(mark).collect();
        plan.identity.insert("data.dir".into(), format!("sha256:{}", files::sha256(marks.as_bytes())));
        Ok(Self {
            locals,
            sums: PerRank::build(world.hosted(), |_| RoundSums::new(device)),
            normalise: Normalise::new(&facts, device),
            test,
            guard: Guard::new(config.train.max_nonfinite_steps),
            cursor: Cursor::default(),
            moved: Moved::default(),
            moved_before: Moved::default(),
            sent_before: Sent::default(),
            teacher,
            student,
            generator,
            memory,
            inversion_bytes,
            step_bytes,
            facts,
            config,
            plan,
            method,
        })
    }

    /// The weights it starts from.
    pub fn inputs(&self) -> Inputs {
        let teacher = self.teacher.as_ref().and(self.config.teacher.weights.clone());
        Inputs { teacher, backbone: self.config.student.backbone.clone() }
    }

    /// Architecture of the network in training.
    pub fn trained_model(&self) -> &'static str {
        self.config.student.model.name()
    }

    /// Name of the file it is written to.
    pub fn trained_file(&self) -> &'static str {
        match self.plan.job {
            Job::Train => "student.safetensors",
            Job::Teach => "teacher.safetensors",
        }
    }

    /// Rows of a student step, over all ranks.
    pub fn batch_size(&self) -> usize {
        self.config.distill.batch_size
    }

    /// Whether all rounds are done.
    pub fn finished(&self) -> bool {
        self.cursor.round >= self.config.train.rounds
    }

    /// Whether rounds begin with an inversion.
    pub(super) fn synthesises(&self) -> bool {
        self.method.recipe.is_some()
    }

    fn past_warmup(&self) -> bool {
        self.cursor.round >= self.config.train.warmup_rounds
    }

    pub(super) fn steps_this_round(&self) -> u64 {
        if self.past_warmup() { self.plan.steps_per_round } else { 0 }
    }

    /// Images made since the start, over all ranks.
    pub fn samples_synthesised(&self) -> u64 {
        let inversions = self.cursor.round + u64::from(self.cursor.inverted);
        match self.method.memory {
            methods::Memory::Replay | methods::Memory::Pool => inversions * self.plan.images_per_round as u64,
            // Images of an inner step are not kept: what the student saw counts.
            methods::Memory::Fresh => self.cursor.student_steps * self.batch_size() as u64,
            methods::Memory::RealData => 0,
        }
    }

    /// Where the random numbers of a slice of this step come from.
    pub(super) fn dropout_key(&self, rank: LogicalRank) -> Key {
        Key::of(self.config.seed, Purpose::Dropout, self.cursor.student_steps, rank)
    }

    /// Learning rate of this round.
    pub fn lr(&self) -> f64 {
        learning_rate(&self.config.student, &self.config.train, self.cursor.round)
    }

    /// Buffered samples per predicted category. A collective.
    pub fn class_counts(&self, world: &World) -> Result<Vec<u64>> {
        self.memory.replay().map_or_else(|| Ok(Vec::new()), |replay| replay.class_counts(world))
    }

    pub(super) fn reset_generator_when_due(&mut self) {
        let (k, train) = (&self.config.inversion, &self.config.train);
        // Counted in synthesis calls from 1, as the reference counts them.
        let due = k.reset_after_rounds > 0 && self.cursor.round + 1 == train.warmup_rounds + k.reset_after_rounds;
        if let (true, Some(generator)) = (due, &self.generator) {
            generator.reset_first_layers(self.config.seed, self.cursor.round);
        }
    }

    /// One synthesis call for one hosted logical rank.
    pub(super) fn synthesise(&mut self, rank: LogicalRank, class_counts_k: &[u64]) -> Result<Batch> {
        let (Some(teacher), Some(recipe)) = (&self.teacher, self.method.recipe) else {
            unreachable!("methods that synthesise have a teacher and a recipe");
        };
        let config = &self.config;
        let settings = Settings {
            recipe,
            image: [self.facts.channels, self.facts.size[0], self.facts.size[1]],
            inversion: config::Inversion {
                regions: Task::of(config.dataset).regions(config.inversion.regions),
                ..config.inversion.clone()
            },
            phi: config.phi.clone(),
            distill: config.distill.clone(),
            image_dtype: config.replay.image_dtype,
            seed: config.seed,
            classes: self.facts.classes,
        };
        let call = Call {
            round: self.cursor.round,
            rank,
            adversarial: self.cursor.round >= config.train.warmup_rounds,
            class_counts_k,
            first_id: self.cursor.round * self.plan.images_per_round as u64 + (rank.0 * config.inversion.batch_size) as u64,
        };
        let networks = Networks { teacher, student: self.student.frozen(), normalise: &self.normalise };
        inversion::invert(&settings, &networks, self.generator.as_mut(), self.locals.get_mut(rank), &call)
    }

    pub(super) fn locals_now(&self) -> PerRank<Before> {
        PerRank::build(self.locals.iter().map(|(rank, _)| rank), |rank| self.locals.get(rank).before())
    }

    /// The shared generator's step; a refused one gives back what was kept of each logical rank as it was `before` it.
    pub(super) fn update_generator(&mut self, shared: &Tensor, before: PerRank<Before>, verdict: Verdict) -> Result<()> {
        for (rank, before) in before.into_iter_ordered() {
            match verdict {
                Verdict::Apply => self.locals.get_mut(rank).settle(),
                Verdict::Refuse => self.locals.get_mut(rank).go_back(before)?,
            }
        }
        match (verdict, &mut self.generator, self.method.recipe.map(|recipe| recipe.synthesis)) {
            (Verdict::Apply, Some(generator), Some(Synthesis::Generator { share, .. })) => {
                generator.apply(share, shared, self.plan.layout.logical_ranks(), &self.config.inversion)
            }
            _ => Ok(()),
        }
    }

    /// Rows of the next global batch. A collective.
    pub(super) fn draw(&mut self, world: &World) -> Result<Draw> {
        let (batch, step, seed) = (self.batch_size(), self.cursor.student_steps, self.config.seed);
        let generator = &self.generator;
        self.memory.draw(world, batch, step, |rank, rows| {
            let generator = generator.as_ref().expect("methods that make images for each step have a generator");
            generator.sample(&Key::of(seed, Purpose::FreshLatent, step, rank), rows)
        })
    }

    pub(super) fn insert(&mut self, born: PerRank<Samples>) -> Result<()> {
        let round = self.cursor.round;
        self.memory.replay_mut().map_or(Ok(()), |replay| replay.insert(born, round))
    }

    pub(super) fn update_student(&mut self, payload: &Tensor, verdict: Verdict) -> Result<()> {
        let lr = self.lr();
        match verdict {
            Verdict::Apply => self.student.apply(payload, self.plan.layout.logical_ranks(), lr),
            Verdict::Refuse => {
                self.student.forget_slice();
                Ok(())
            }
        }
    }

    /// What draws have sent from all processes, over all launches. A collective; 16 bytes a rank.
    pub fn moved_by_all(&self, world: &World) -> Result<Moved> {
        let [rows, bytes] = world.sum([self.moved.rows, self.moved.bytes])?;
        let mut total = self.moved_before;
        // Every process counts every draw.
        total += Moved { draws: self.moved.draws, rows, bytes };
        Ok(total)
    }

    /// What rank 0 has sent, over all launches. Only there it means anything.
    pub fn sent(&self, world: &World) -> Sent {
        Sent { bytes: self.sent_before.bytes + world.meter().total_bytes(), rows: self.sent_before.rows + self.moved.rows }
    }

    /// Where the run is, for a checkpoint.
    pub fn position(&self) -> Position {
        let Cursor { round, inverted, steps_left, student_steps } = self.cursor;
        Position { round, inverted, steps_left, student_steps, refused: self.guard.in_a_row() }
    }

    /// Everything a restart needs, by owner.
    pub fn contents(&self, world: &World) -> Contents {
        let mut shared = Entries::default();
        shared.save("student", &self.student);
        if let Some(generator) = &self.generator {
            shared.save("generator", generator);
        }
        let ranks = PerRank::build(world.hosted(), |rank| {
            let mut entries = Entries::default();
            entries.save("local", self.locals.get(rank));
            entries.save("sums", self.sums.get(rank));
            if let Some(replay) = self.memory.replay() {
                entries.save("replay", replay.shard(rank));
            }
            entries
        });
        Contents { shared, ranks }
    }

    /// Takes everything back. After an error the run is not to be used.
    pub fn restore(&mut self, loaded: &Loaded) -> Result<()> {
        let contents = &loaded.contents;
        contents.shared.load("student", &mut self.student)?;
        if let Some(generator) = &mut self.generator {
            contents.shared.load("generator", generator)?;
        }
        for (rank, entries) in contents.ranks.iter() {
            entries.load("local", self.locals.get_mut(rank))?;
            entries.load("sums", self.sums.get_mut(rank))?;
            if let Some(replay) = self.memory.replay_mut() {
                entries.load("replay", replay.shard_mut(rank))?;
            }
        }
        let Position { round, inverted, steps_left, student_steps, refused } = loaded.manifest.position;
        self.cursor = Cursor { round, inverted, steps_left, student_steps };
        self.guard.resume(refused);
        Ok(())
    }

    /// Score of the student on the test split, or against the teacher. A collective.
    pub fn evaluate_student(&self, world: &World) -> Result<Option<Score>> {
        let source = self.generator.as_ref().zip(self.teacher.as_ref()).map(|(generator, teacher)| Source { generator, teacher });
        eval::evaluate(world, self.student.frozen(), &self.normalise, &self.test, source)
    }

    /// Closes the round: sums of all logical ranks in their order, and a score when one is due. A collective.
    pub(super) fn record(&mut self, world: &World) -> Result<RoundRecord> {
        let mine = PerRank::build(world.hosted(), |rank| self.sums.get(rank).bits());
        let all: Vec<[f64; COLUMNS + 4]> = world.gather(&mine)?.into_iter().map(|bits| bits.map(f64::from_bits)).collect();
        for rank in world.hosted() {
            *self.sums.get_mut(rank) = RoundSums::new(world.device());
        }
        let sum = |i: usize| all.iter().map(|v| v[i]).sum::<f64>();
        // What was refused is in neither sum nor count.
        let mean = |i: usize, count: f64| (count > 0.0).then(|| sum(i) / count);
        let (mean_over_ranks, mean_over_rows) = (|i| mean(i, sum(COLUMNS + 2)), |i| mean(COLUMNS + i, sum(COLUMNS + 3)));
        let term = |wanted: &dyn Fn(&Term) -> bool, i| self.method.recipe?.terms.iter().any(wanted).then(|| mean_over_ranks(i))?;
        let counts = self.class_counts(world)?;
        let round = self.cursor.round;
        let last = round + 1 == self.config.train.rounds;
        let due = self.past_warmup() && (last || (round + 1).is_multiple_of(self.config.train.eval_every_rounds));
        let score = if due { self.evaluate_student(world)? } else { None };
        let record = RoundRecord {
            round,
            student_step: self.cursor.student_steps,
            samples_synthesised: self.samples_synthesised(),
            lr: self.lr(),
            loss_statistics: term(&|t| *t == Term::Statistics, 0),
            loss_task: term(&|t| matches!(t, Term::Task | Term::ModulatedTask), 1),
            loss_adversarial: term(&|t| matches!(t, Term::Adversarial(_)), 2),
            phi: term(&|t| *t == Term::ModulatedTask, 3),
            loss_prior: term(&Term::is_prior, 4),
            loss_student: mean_over_rows(0),
            loss_unweighted: mean_over_rows(1),
            buffer_filled: counts.iter().sum(),
            buffer_class_balance: balance(&counts),
            ..RoundRecord::default()
        };
        Ok(match score {
            Some(Score { scores, loss, .. }) => record.evaluated(&scores, loss),
            None => record,
        })
    }
}

/// Refuses images `[b, c, h, w]` too large or too many for a backward pass, which needs at least one value for each that the network's
/// layers give. Returns the bytes of these, on one rank.
fn room_for_layers(
    key: &str,
    name: ModelName,
    (network, state): (&dyn Network, &State),
    [images, channels, h, w]: [i64; 4],
    precision: Precision,
    world: &World,
) -> Result<f64> {
    let one = Tensor::zeros([1, channels, h, w], (Kind::Float, world.device()));
    let values = layer_values(|| drop(tch::no_grad(|| network.forward(state, &one, &mut Pass::eval())))) as f64;
    let bytes = values * images as f64 * if precision == Precision::Bf16 { 2.0 } else { 4.0 };
    let what = format!("the layers of {} for {images} images of {w}×{h}", name.name());
    room_for(key, &what, bytes * world.ranks_in_memory() as f64, world.device())?;
    Ok(bytes)
}

/// What inversion keeps of one logical rank, empty.
fn local(config: &Config, plan: &Plan, method: &Method, teacher: Option<&Teacher>, device: Device) -> Result<Local> {
    let k = &config.inversion;
    let channels = teacher.map_or(0, Teacher::batch_norm_channels);
    let contrast = match (teacher, method.recipe) {
        (Some(teacher), Some(recipe)) if recipe.has(Term::Contrast, k) => {
            let (_, features) = teacher.parts().0.embedding();
            let made = config.train.rounds as usize * k.batch_size;
            let most = made.min(k.contrastive_bank / plan.layout.logical_ranks()).max(k.batch_size);
            Some(Contrast::new(k, features, most, config.seed, device)?)
        }
        _ => None,
    };
    Ok(Local { average: StatisticsAverage::new(k.statistics_momentum, channels, device), contrast })
}

/// Entropy of a histogram over its largest possible value: 1 when all categories are equally frequent.
fn balance(counts: &[u64]) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 || counts.len() < 2 {
        return None;
    }
    let share = |&n: &u64| n as f64 / total as f64;
    let entropy: f64 = counts.iter().map(share).filter(|p| *p > 0.0).map(|p| -p * p.ln()).sum();
    Some(entropy / (counts.len() as f64).ln())
}
