//! Every method through the real launcher: the compared methods are distributed and go on after a stop as SSD-KD does.

use crate::launch::{has_mpirun, small_fashion_mnist, ssdkd, ssdkd_on, tiny};
use ssdkd::checkpoint;
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

/// Whether a page needs nothing but itself: pictures lie in it, nothing is loaded, and the only address is the name of SVG's language.
pub fn is_self_contained(page: &str) -> bool {
    let mut parts = page.split("src=\"data:image/png;base64,");
    let head = parts.next().unwrap().to_owned();
    // Without the pictures, whose letters say nothing.
    let text: String = std::iter::once(head).chain(parts.map(|part| part.split_once('"').unwrap().1.to_owned())).collect();
    let loads = ["src=", "href", "url(", "@import", "<script", "<link"].iter().any(|way| text.contains(way));
    !loads && text.matches("http").count() == text.matches("xmlns=\"http://www.w3.org/2000/svg\"").count()
}

/// Two ranks without a stop, and one rank that stops after two of three rounds and goes on as two: the same student, generator, images and metrics.
#[test]
fn every_method_trains_on_two_ranks_and_goes_on_after_a_stop() {
    let folder = tempfile::tempdir().unwrap();
    let data = small_fashion_mnist(folder.path(), 50);
    let ranks = if has_mpirun() { 2 } else { 1 };
    let launch = |arguments: &[String]| if ranks == 1 { ssdkd(arguments) } else { ssdkd_on(ranks, arguments) };
    for (method, sets) in METHODS {
        let [straight, stopped] = ["straight", "stopped"].map(|name| folder.path().join(format!("{method}-{name}")));
        let arguments = |run: &Path| {
            let mut arguments = tiny(&data, run);
            let method = format!("method={method}");
            let all = [method.as_str(), "parallel.logical_ranks=2", "train.rounds=3"].into_iter().chain(sets.iter().copied());
            all.for_each(|set| arguments.extend(["--set".into(), set.into()]));
            arguments
        };
        launch(&arguments(&straight)).expect(0);
        let until_stopped: Vec<String> = arguments(&stopped).into_iter().chain(["--until-round".into(), "2".into()]).collect();
        ssdkd(&until_stopped).expect(0);
        launch(&arguments(&stopped)).expect(0).says(&["resumed at step"]);
        assert_eq!(checkpoint::checksums(&stopped).unwrap(), checkpoint::checksums(&straight).unwrap(), "{method}");

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
        assert!(is_self_contained(&page), "{method}: its page");
        // What the teacher sees in images: in the pool, or in those that the last picture is chosen from.
        let counted = |of: &str| report["fresh"][of].as_array().map(|all| all.iter().map(|n| n.as_u64().unwrap()).sum::<u64>());
        let fresh = (makes_images && !has_pool).then_some(2 * 10 * 12);
        assert_eq!((counted("class_counts"), counted("confidence_counts")), (fresh, fresh), "{method}");
        let source = if has_pool { "the buffer" } else { "240 images of the generator" };
        let captions = [format!("{method}: categories in {source}"), format!("{method}: difficulty of {source}")];
        for part in captions.iter().map(String::as_str).chain(["<li>ankle boot</li>"]) {
            assert_eq!(page.contains(part), makes_images, "{method}: {part}");
        }
        // Terms have their names, and those of other methods are not there.
        let line = |name: &str| page.contains(&format!(">\n{name}\n<"));
        let terms = ["task", "φ-weighted task", "other terms"].map(line);
        let has_task = makes_images && !["zskt", "dfad"].contains(&method);
        assert_eq!(terms, [has_task, false, ["dafl", "dfq", "deepinv", "cmi"].contains(&method)], "{method}");
    }
    let page = folder.path().join("page.html");
    let dirs = ["fast_meta", "dafl", "kd"].map(|method| folder.path().join(format!("{method}-straight")));
    let arguments: Vec<&str> = dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
    ssdkd(&[&["report"][..], &arguments, &["--out", page.to_str().unwrap()]].concat()).expect(0);
    let text = std::fs::read_to_string(&page).unwrap();
    for dir in &dirs {
        assert!(text.contains(dir.file_name().unwrap().to_str().unwrap()), "{}", dir.display());
    }
    // Curves, time, and of each that makes images histograms and a picture with its categories; keys that differ, and no others.
    assert!(is_self_contained(&text));
    for part in ["Score over time", "Statistics loss L_BN", "title=\"inversion: "] {
        assert!(text.contains(part), "{part}");
    }
    for (name, source) in [("fast_meta-straight", "the buffer"), ("dafl-straight", "240 images of the generator")] {
        for part in [format!("{name}: categories in {source}"), format!("{name}: difficulty of {source}")] {
            assert!(text.contains(&part), "{part}");
        }
    }
    assert_eq!([text.matches("<img alt=\"synthetic images").count(), text.matches("<li>ankle boot</li>").count()], [2, 2]);
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
