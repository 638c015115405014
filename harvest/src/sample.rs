//! The smallest description of a cache, for tests and fuzz targets.

use schemas::{DatasetIdentity, Manifest, SignalKind, SignalSpec, TeacherIdentity};

/// Of one text, `said`, which this model says about the field `a`.
pub(crate) fn manifest(model: &str) -> Manifest {
    let teacher = TeacherIdentity {
        kind: "t".into(),
        model: model.into(),
        settings: serde_json::json!({}),
    };
    let dataset = DatasetIdentity {
        task: "t".into(),
        fields: vec!["a".into()],
        prompt: None,
    };
    let said = SignalSpec::new("said", SignalKind::Text, "a text");
    Manifest::new(teacher, dataset, 1, vec![said.expect("the name is one")])
}
