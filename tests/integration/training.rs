//! What is trained by hand-written passes and optimisers equals PyTorch's: golden values of tests/golden/training.

use crate::fill::{fill, fill_f64};
use crate::networks::filled;
use ssdkd::config::{self, Config, ImageDtype, ModelName};
use ssdkd::data::{Facts, Fit, Normalise, View};
use ssdkd::distill::{Criterion, Student, backward};
use ssdkd::inversion::{Call, Local, Networks, Settings, Share, SharedGenerator, invert};
use ssdkd::layout::LogicalRank;
use ssdkd::losses::StatisticsAverage;
use ssdkd::methods::Method;
use ssdkd::models::{self, Shape};
use ssdkd::nn::{Adam, Entries, InputStatistics, Role, Sgd, Stateful, weights};
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

/// Two inner steps of one logical rank with every term at work: meta-gradient, kept images, their assessment, and the meta step.
#[test]
fn a_synthesis_call_and_its_meta_step_are_pytorchs() {
    let golden = Golden::read();
    let (facts, normalise) = (facts(), Normalise::new(&facts(), Device::Cpu));
    let build = || models::build(ModelName::Wrn16x1, Shape { channels: 1, classes: 3 });
    let network = build();
    let (teacher_state, _) = filled(network.blueprint(), 0);
    let teacher = Teacher::new(network, teacher_state);
    let student = build();
    let (student_state, _) = filled(student.blueprint(), 0);
    let head = student.blueprint().entries().iter().position(|e| e.key == "fc.weight").unwrap();
    let _ = student_state.at(ssdkd::nn::Slot(head)).shallow_clone().g_mul_scalar_(0.5);

    let settings = Settings {
        recipe: Method::of(&Config::default()).recipe.unwrap(),
        image: [1, 8, 8],
        inversion: config::Inversion { steps: 2, batch_size: 6, view_shift: 2, ..Default::default() },
        phi: config::Phi::default(),
        distill: config::Distill { temperature: 4.0, teacher_views: 2, view_shift: 2, ..Default::default() },
        image_dtype: ImageDtype::Float32,
        seed: 7,
        classes: 3,
    };
    let of_generator = config::Generator { latent: 8, filters: 4, large: false };
    let mut generator = SharedGenerator::new(&of_generator, &settings.inversion, &facts, 7, Device::Cpu).unwrap();
    generator.state.copy_from(&filled(generator.network.blueprint(), 100).0);

    let channels = student.blueprint().batch_norm_channels();
    let past = |(i, &f): (usize, &i64)| InputStatistics {
        mean_f: (fill_f64(350 + i as u64, &[f]) * 0.1).to_kind(Kind::Float),
        variance_f: (fill_f64(300 + i as u64, &[f]) * 0.5 + 1.0).to_kind(Kind::Float),
    };
    let mut average = StatisticsAverage::new(0.9, channels.iter().sum(), Device::Cpu);
    average.update(&channels.iter().enumerate().map(past).collect::<Vec<_>>());

    let mut local = Local { average, contrast: None };
    let networks = Networks { teacher: &teacher, student: (&*student, &student_state), normalise: &normalise };
    let call = Call { round: 25, rank: LogicalRank(1), adversarial: true, class_counts_k: &[6, 3, 1], first_id: 1000 };
    let batch = invert(&settings, &networks, Some(&mut generator), &mut local, &call).unwrap();

    golden.equals("meta_gradient", &batch.shared, 2e-4);
    golden.equals("terms", &batch.terms.narrow(0, 0, 4), 1e-5);
    let samples = batch.samples.unwrap();
    golden.equals("images", &samples.images_bchw, 1e-5);
    golden.equals("view_logits", &samples.view_logits, 1e-4);
    golden.equals("confidence", &Tensor::from_slice(&samples.confidence), 1e-4);
    golden.equals("delta", &Tensor::from_slice(&samples.delta), 1e-4);
    let mut entries = Entries::default();
    local.average.save(&mut entries);
    golden.equals("average.mean", entries.read("mean").unwrap(), 1e-5);
    golden.equals("average.variance", entries.read("variance").unwrap(), 1e-5);

    generator.apply(Share::MetaStep, &batch.shared, 2, &settings.inversion).unwrap();
    golden.equals("generator", generator.state.parameters(), 1e-4);
}

/// Gradient and running statistics of one logical rank's slice; the global batch is four times as large.
#[test]
fn a_slice_of_a_student_step_is_pytorchs() {
    let golden = Golden::read();
    let network = models::build(ModelName::Wrn16x1, Shape { channels: 1, classes: 3 });
    let blueprint = network.blueprint().clone();
    let (state, _) = filled(&blueprint, 400);
    let mut student = Student::new(network, state, 0.9, 1e-4).unwrap();
    let views = [(0, 0, false), (2, -1, false), (-2, 2, true), (0, 1, true), (1, 1, false)];
    let rows = Rows {
        images_bchw: (fill_f64(500, &[5, 1, 8, 8]) * 0.5 + 0.5).to_kind(Kind::Float),
        ids_b: Tensor::arange(5, (Kind::Int64, Device::Cpu)),
        views: views.map(|(down, right, flip)| View { down, right, flip }).to_vec(),
        weights_b: (fill_f64(501, &[5]) * 0.5 + 1.0).to_kind(Kind::Float),
        target: Target::Logits((fill_f64(502, &[5, 3]) * 3.0).to_kind(Kind::Float)),
    };
    let slice = backward(
        &mut student,
        None,
        &Normalise::new(&facts(), Device::Cpu),
        &rows,
        Criterion::Distillation { temperature: 4.0, label_weight: 0.0 },
        20,
        Key::global(0, Purpose::Dropout, 0),
    );
    golden.equals("slice.loss", &slice.loss_b, 1e-5);
    let (gradient, statistics) = student.state().split_payload(&slice.payload);
    golden.equals("slice.statistics", &statistics, 1e-6);
    let mut at = 0;
    let mut found = Vec::new();
    for entry in blueprint.entries().iter().filter(|e| matches!(e.role, Role::Parameter(_))) {
        let part = gradient.narrow(0, at, entry.numel()).to_kind(Kind::Double);
        at += entry.numel();
        found.push(Tensor::stack(&[part.norm(), (&part * fill_f64(600 + found.len() as u64, &[entry.numel()])).sum(Kind::Double)], 0));
    }
    for (i, found) in found.iter().enumerate() {
        let difference = (found - golden.0["slice.gradient"].get(i as i64)).abs().max().double_value(&[]);
        assert!(difference <= 1e-4 * found.double_value(&[0]), "parameter {i}: {found}");
    }
    assert_eq!(found.len() as i64, golden.0["slice.gradient"].size()[0]);
}
