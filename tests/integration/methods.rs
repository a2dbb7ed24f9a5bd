//! Every method through the real launcher: the compared methods are distributed and go on after a stop as SSD-KD does.

use crate::launch::{has_mpirun, small_fashion_mnist, ssdkd, ssdkd_on, tiny};
use std::path::Path;

/// What the methods need beside the settings of a tiny run.
const METHODS: [(&str, &[&str]); 10] = [
    ("fast_meta", &["inversion.meta=reptile"]),
    ("fast", &[]),
    ("dafl", &["inversion.steps=1"]),
    ("zskt", &["inversion.steps=1", "train.warmup_rounds=0"]),
    ("dfad", &["inversion.steps=1", "train.warmup_rounds=0"]),
    ("dfq", &["inversion.steps=1"]),
    ("deepinv", &[]),
    // The memory is full before the end.
    ("cmi", &["inversion.contrastive_bank=40", "inversion.contrastive_negatives=8"]),
    ("kd", &["train.warmup_rounds=0"]),
    ("scratch", &["train.warmup_rounds=0"]),
];

fn checksums(run: &Path) -> String {
    ssdkd(&["inspect", "--checksum", run.to_str().unwrap()]).expect(0).stdout
}

/// Two ranks without a stop, and one rank that stops half-way and goes on as two: the same student, generator, images and metrics.
#[test]
fn every_method_trains_on_two_ranks_and_goes_on_after_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    let data = small_fashion_mnist(folder.path(), 100);
    let ranks = if has_mpirun() { 2 } else { 1 };
    let launch = |arguments: &[String]| if ranks == 1 { ssdkd(arguments) } else { ssdkd_on(ranks, arguments) };
    for (method, sets) in METHODS {
        let [straight, stopped] = ["straight", "stopped"].map(|name| folder.path().join(format!("{method}-{name}")));
        let arguments = |run: &Path| {
            let mut arguments = tiny(&data, run);
            arguments.extend(["--set".into(), format!("method={method}")]);
            sets.iter().for_each(|set| arguments.extend(["--set".into(), (*set).into()]));
            arguments
        };
        launch(&arguments(&straight)).expect(0);
        let first_half: Vec<String> = arguments(&stopped).into_iter().chain(["--until-round".into(), "2".into()]).collect();
        ssdkd(&first_half).expect(0);
        launch(&arguments(&stopped)).expect(0).says(&["resumed at step"]);
        assert_eq!(checksums(&stopped), checksums(&straight), "{method}");

        let report: serde_json::Value = serde_json::from_slice(&std::fs::read(straight.join("report.json")).unwrap()).unwrap();
        assert_eq!((report["method"].as_str(), report["ranks"].as_u64()), (Some(method), Some(ranks as u64)));
        let top1 = report["student"]["top1"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&top1) && report["student_steps"].as_u64() > Some(0), "{method}: {report}");
        let has_pool = ["fast_meta", "fast", "deepinv", "cmi"].contains(&method);
        assert_eq!(report["buffer"].is_object(), has_pool, "{method}");
        if has_pool {
            assert_eq!(report["buffer"]["capacity"], report["samples_synthesised"], "{method}: a pool holds all images");
        }
        let page = std::fs::read_to_string(straight.join("report.html")).unwrap();
        let makes_images = !["kd", "scratch"].contains(&method);
        assert!(page.contains(method) && page.contains("synthetic images, round 0") == makes_images, "{method}: its page");
    }
    let page = folder.path().join("page.html");
    let dirs = ["fast_meta", "dafl", "kd"].map(|method| folder.path().join(format!("{method}-straight")));
    let arguments: Vec<&str> = dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    ssdkd(&[&["report"][..], &arguments, &["--out", page.to_str().unwrap()]].concat()).expect(0);
    let text = std::fs::read_to_string(&page).unwrap();
    for dir in &dirs {
        assert!(text.contains(dir.file_name().unwrap().to_str().unwrap()), "{}", dir.display());
    }
    // A picture of each that makes images; keys that differ, and no others.
    assert_eq!(text.matches("<img alt=\"synthetic images").count(), 2);
    assert!(text.contains("<code>inversion.steps</code>") && !text.contains("<code>seed</code>"), "settings that differ");
    // The same page that the run itself wrote.
    let (own, again) = (dirs[0].join("report.html"), folder.path().join("again.html"));
    ssdkd(&["report", arguments[0], "--out", again.to_str().unwrap()]).expect(0);
    assert!(std::fs::read(own).unwrap() == std::fs::read(again).unwrap());
    // A folder of runs is a page of all of them; one that holds none is refused.
    ssdkd(&["report", folder.path().to_str().unwrap()]).expect(0);
    let all = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(METHODS.iter().all(|(method, _)| all.contains(&format!("{method}-straight")) && all.contains(&format!("{method}-stopped"))));
    let empty = tempfile::tempdir().unwrap();
    ssdkd(&["report", empty.path().to_str().unwrap()]).expect(2).says(&["report.json: no such file"]);
    ssdkd(&["report", arguments[0], "--out", "/nowhere/page.html"]).expect(2).says(&["no such folder"]);
}
