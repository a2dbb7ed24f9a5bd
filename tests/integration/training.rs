//! What is trained by hand-written passes and optimisers equals PyTorch's: golden values of tests/golden/training.

use ssdkd::config::{self, Config, ImageDtype, MetaRule, MethodName, ModelName};
use ssdkd::data::{Facts, Fit, Normalise, View};
use ssdkd::distill::{Criterion, Student, backward};
use ssdkd::goldens::{fill, fill_f64, filled};
use ssdkd::inversion::{Call, Contrast, Local, Networks, Settings, Share, SharedGenerator, Synthesis, invert};
use ssdkd::layout::LogicalRank;
use ssdkd::losses::StatisticsAverage;
use ssdkd::methods::Method;
use ssdkd::models::{self, Network, Shape};
use ssdkd::nn::{Adam, Entries, InputStatistics, Role, Sgd, Slot, State, Stateful, weights};
use ssdkd::replay::{Rows, Target};
use ssdkd::rng::{Key, Purpose};
use ssdkd::teacher::Teacher;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

struct Golden(BTreeMap<String, Tensor>);

impl Golden {
    fn read() -> Self {
        Self(
            weights::read(&crate::launch::root().join("tests/golden/training/training.safetensors")).unwrap().tensors.into_iter().collect(),
        )
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The difference is at most `tolerance` of the golden value, both as norms.
    #[track_caller]
    fn equals(&self, name: &str, got: &Tensor, tolerance: f64) {
        let want = &self.0[name];
        assert_eq!(got.size(), want.size(), "{name}");
        let share = ((got.to_kind(Kind::Double) - want).norm() / want.norm()).double_value(&[]);
        assert!(share <= tolerance, "{name} is off by {share:e}:\n{got}\ninstead of\n{want}");
    }
}

#[test]
fn three_steps_of_sgd_and_adam_are_pytorchs() {
    let golden = Golden::read();
    let start = || fill(1, &[37]);
    let (for_sgd, for_adam) = (start(), start());
    let (mut sgd, mut adam) = (Sgd::new(&for_sgd, 0.9, 0.05), Adam::new(&for_adam, 0.5, 0.999));
    for (step, lr) in [0.2, 0.1, 0.05].into_iter().enumerate() {
        let gradient = fill(2 + step as u64, &[37]);
        sgd.step(&for_sgd, &gradient, lr).unwrap();
        adam.step(&for_adam, &gradient, lr).unwrap();
        golden.equals(&format!("sgd.{step}"), &for_sgd, 2e-7);
        golden.equals(&format!("adam.{step}"), &for_adam, 2e-7);
    }
}

fn facts() -> Facts {
    Facts { classes: 3, channels: 1, size: [8, 8], padding: 0, fit: Fit::Exact, mean: vec![0.25], std: vec![0.5], class_names: vec![] }
}

/// A teacher and a student that mostly agrees with it.
struct Pair {
    teacher: Teacher,
    student: Box<dyn Network>,
    student_state: State,
}

impl Pair {
    fn new() -> Self {
        let student = wrn();
        let (student_state, _) = filled(student.blueprint(), 0, Device::Cpu).unwrap();
        let head = student.blueprint().entries().iter().position(|e| e.key == "fc.weight").unwrap();
        let _ = student_state.at(Slot(head)).shallow_clone().g_mul_scalar_(0.5);
        Self { teacher: teacher(), student, student_state }
    }
}

fn wrn() -> Box<dyn Network> {
    models::build(ModelName::Wrn16x1, Shape { channels: 1, classes: 3 })
}

fn teacher() -> Teacher {
    let network = wrn();
    let (state, _) = filled(network.blueprint(), 0, Device::Cpu).unwrap();
    Teacher::new(network, state)
}

fn settings(method: MethodName, inversion: config::Inversion) -> Settings {
    Settings {
        recipe: Method::of(&Config { method, ..Default::default() }).recipe.unwrap(),
        image: [1, 8, 8],
        inversion,
        phi: config::Phi::default(),
        distill: config::Distill { temperature: 4.0, teacher_views: 2, view_shift: 2, ..Default::default() },
        image_dtype: ImageDtype::Float32,
        seed: 7,
        classes: 3,
    }
}

fn generator(settings: &Settings) -> SharedGenerator {
    let of = config::Generator { latent: 8, filters: 4, large: false, stages: 2 };
    let generator = SharedGenerator::new(&of, &settings.inversion, &facts(), 7, Device::Cpu).unwrap();
    generator.state.copy_from(&filled(generator.network.blueprint(), 100, Device::Cpu).unwrap().0);
    generator
}

/// Two inner steps of one logical rank with every term at work: meta-gradient, kept images, their assessment, and the meta step.
#[test]
fn a_synthesis_call_and_its_meta_step_are_pytorchs() {
    let golden = Golden::read();
    let Pair { teacher, student, student_state } = &Pair::new();
    let normalise = Normalise::new(&facts(), Device::Cpu);
    let settings = settings(MethodName::SsdKd, config::Inversion { steps: 2, batch_size: 6, view_shift: 2, ..Default::default() });
    let mut generator = generator(&settings);
    let channels = student.blueprint().batch_norm_channels();
    let past = |(i, &f): (usize, &i64)| InputStatistics {
        mean_f: (fill_f64(350 + i as u64, &[f]) * 0.1).to_kind(Kind::Float),
        variance_f: (fill_f64(300 + i as u64, &[f]) * 0.5 + 1.0).to_kind(Kind::Float),
    };
    let mut average = StatisticsAverage::new(0.9, channels.iter().sum(), Device::Cpu);
    average.update(&channels.iter().enumerate().map(past).collect::<Vec<_>>());

    let mut local = Local { average, contrast: None };
    let networks = Networks { teacher, student: (&**student, student_state), normalise: &normalise };
    let call = Call { round: 25, rank: LogicalRank(1), adversarial: true, class_counts_k: &[6, 3, 1], first_id: 1000 };
    let batch = invert(&settings, &networks, Some(&mut generator), &mut local, &call).unwrap();

    golden.equals("meta_gradient", &batch.shared, 2e-4);
    golden.equals("terms", &batch.terms.narrow(0, 0, 4), 1e-5);
    let samples = batch.samples.unwrap();
    golden.equals("images", &samples.images_bchw, 1e-5);
    golden.equals("view_logits", &samples.view_logits, 1e-4);
    golden.equals("confidence", &Tensor::from_slice(&samples.confidence), 1e-4);
    // A KL is quadratic in differences of logits: it is off by twice as much of itself as they are.
    golden.equals("delta", &Tensor::from_slice(&samples.delta), 2e-4);
    let mut entries = Entries::default();
    local.average.save(&mut entries);
    golden.equals("average.mean", entries.read("mean").unwrap(), 1e-5);
    golden.equals("average.variance", entries.read("variance").unwrap(), 1e-5);

    generator.apply(Share::MetaStep, &batch.shared, 2, &settings.inversion).unwrap();
    golden.equals("generator", generator.state.parameters(), 1e-4);
}

/// One call of every other method that makes images, at the weights of make_goldens.py: every term, what is moved, what is kept, what
/// the shared generator takes.
#[test]
fn synthesis_calls_of_the_compared_methods_are_pytorchs() {
    use MetaRule::{Maml, Reptile};
    use MethodName::{Cmi, Dafl, Deepinv, Dfad, Dfq, Fast, FastMeta, Zskt};
    let golden = Golden::read();
    let (pair, normalise) = (Pair::new(), Normalise::new(&facts(), Device::Cpu));
    let calls = [(Fast, 2), (Dafl, 1), (Zskt, 1), (Dfad, 1), (Dfq, 1), (Deepinv, 3), (Cmi, 2)].map(|(method, steps)| (method, steps, Maml));
    for (method, steps, meta) in calls.into_iter().chain([(FastMeta, 2, Maml), (FastMeta, 2, Reptile)]) {
        let inversion = config::Inversion {
            steps,
            meta,
            batch_size: 6,
            view_shift: 2,
            statistics_weight: 0.7,
            task_weight: 0.9,
            adversarial_weight: 1.1,
            balance_weight: 0.5,
            activation_weight: 0.3,
            variation_weight: 0.2,
            norm_weight: 0.05,
            contrastive_weight: 0.8,
            contrastive_temperature: 0.2,
            statistics_momentum: 0.0,
            ..Default::default()
        };
        let of = Method::of(&Config { method, ..Default::default() });
        let form = if meta == Reptile { ".reptile" } else { ".maml" };
        let name = if method == FastMeta { of.name.to_owned() + form } else { of.name.to_owned() };
        let settings = settings(method, inversion);
        let mut generator = generator(&settings);
        let width: i64 = pair.student.blueprint().batch_norm_channels().iter().sum();
        let contrast = (method == Cmi).then(|| {
            let mut contrast = Contrast::new(&settings.inversion, width, 10, 7, Device::Cpu).unwrap();
            let part = |i: u64, shape: &[i64], scale: f64| (fill_f64(700 + i, shape) * scale).to_kind(Kind::Float).flatten(0, -1);
            let linear = (3.0 / width as f64).sqrt();
            let parameters = Tensor::cat(
                &[part(0, &[width, width], linear), part(1, &[width], 0.1), part(2, &[256, width], linear), part(3, &[256], 0.1)],
                0,
            );
            let bank = Tensor::zeros([10, 2 * width], (Kind::Float, Device::Cpu));
            bank.narrow(0, 0, 4).copy_(&fill(710, &[4, 2 * width]));
            let mut entries = Entries::default();
            entries.tensor("parameters", &parameters);
            entries.save("adam", &Adam::new(&parameters, 0.9, 0.999));
            entries.tensor("bank", &bank);
            entries.number("written", 4);
            contrast.load(&entries).unwrap();
            contrast
        });
        let mut local = Local { average: StatisticsAverage::new(0.0, width, Device::Cpu), contrast };
        let networks = Networks { teacher: &pair.teacher, student: (&*pair.student, &pair.student_state), normalise: &normalise };
        let call = Call { round: 25, rank: LogicalRank(1), adversarial: true, class_counts_k: &[6, 3, 1], first_id: 1000 };
        let batch = invert(&settings, &networks, Some(&mut generator), &mut local, &call).unwrap();
        local.settle();

        golden.equals(&format!("{name}.terms"), &batch.terms, 1e-5);
        assert_eq!(batch.samples.is_some(), golden.has(&format!("{name}.images")), "{name}");
        if let Some(samples) = batch.samples {
            golden.equals(&format!("{name}.images"), &samples.images_bchw, 1e-5);
        }
        if golden.has(&format!("{name}.shared")) {
            let Synthesis::Generator { share, .. } = settings.recipe.synthesis else { panic!("{name} moves pixels") };
            golden.equals(&format!("{name}.shared"), &batch.shared, 2e-4);
            generator.apply(share, &batch.shared, 2, &settings.inversion).unwrap();
            golden.equals(&format!("{name}.generator"), generator.state.parameters(), 1e-4);
        }
        if let Some(contrast) = &local.contrast {
            let mut entries = Entries::default();
            contrast.save(&mut entries);
            golden.equals("cmi.head", entries.read("parameters").unwrap(), 1e-4);
            golden.equals("cmi.remembered", &entries.read("bank").unwrap().narrow(0, 4, 6), 1e-5);
        }
    }
}

/// Gradient and running statistics of one logical rank's slice, for every criterion; the global batch is four times as large.
#[test]
fn slices_of_student_steps_are_pytorchs() {
    let golden = Golden::read();
    let teacher = teacher();
    let logits = || Target::Logits((fill_f64(502, &[5, 3]) * 3.0).to_kind(Kind::Float));
    let labels = || Target::Labels(Tensor::from_slice(&[2i64, 0, 1, 1, 0]));
    let distillation = |label_weight| Criterion::Distillation { temperature: 4.0, label_weight };
    for (name, criterion, target) in [
        ("slice", distillation(0.0), logits()),
        ("slice.distance", Criterion::LogitDistance, logits()),
        ("slice.labels", Criterion::CrossEntropy, labels()),
        ("slice.kd", distillation(0.1), labels()),
    ] {
        let network = wrn();
        let blueprint = network.blueprint().clone();
        let (state, _) = filled(&blueprint, 400, Device::Cpu).unwrap();
        let mut student = Student::new(network, state, 0.9, 1e-4).unwrap();
        let views = [(0, 0, false), (2, -1, false), (-2, 2, true), (0, 1, true), (1, 1, false)];
        let rows = Rows {
            images_bchw: (fill_f64(500, &[5, 1, 8, 8]) * 0.5 + 0.5).to_kind(Kind::Float),
            ids_b: Tensor::arange(5, (Kind::Int64, Device::Cpu)),
            views: views.map(|(down, right, flip)| View { down, right, flip }).to_vec(),
            weights_b: (fill_f64(501, &[5]) * 0.5 + 1.0).to_kind(Kind::Float),
            target,
        };
        let (normalise, dropout) = (Normalise::new(&facts(), Device::Cpu), Key::global(0, Purpose::Dropout, 0));
        let slice = backward(&mut student, Some(&teacher), &normalise, &rows, criterion, 20, dropout);
        golden.equals(&format!("{name}.loss"), &slice.loss_b, 1e-5);
        let (gradient, statistics) = student.state().split_payload(&slice.payload);
        golden.equals(&format!("{name}.statistics"), &statistics, 1e-6);
        let want = &golden.0[&format!("{name}.gradient")];
        let (mut at, mut count) = (0, 0);
        for entry in blueprint.entries().iter().filter(|e| matches!(e.role, Role::Parameter(_))) {
            let part = gradient.narrow(0, at, entry.numel()).to_kind(Kind::Double);
            let product = (&part * fill_f64(600 + count as u64, &[entry.numel()])).sum(Kind::Double);
            let found = Tensor::stack(&[part.norm(), product], 0);
            let difference = (&found - want.get(count)).abs().max().double_value(&[]);
            assert!(difference <= 1e-4 * found.double_value(&[0]), "{name}, parameter {count}: {found}");
            (at, count) = (at + entry.numel(), count + 1);
        }
        assert_eq!(count, want.size()[0]);
    }
}
