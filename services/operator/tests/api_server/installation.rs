//! What an installation is made of, as the snapshots in `src/desired/golden` have it, is taken by a real server; what the chart of the
//! operator makes, as those in `tests/golden` have it, too.

use std::path::Path;

use serde_json::{Value, json};

use crate::world::World;

/// The objects of each file of a folder, in the world's namespace where they name one.
fn snapshots(world: &World, folder: &str) -> Vec<(String, Vec<Value>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = std::fs::read_dir(folder).unwrap().map(|file| {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let here = format!("namespace: {}\n", world.namespace);
        // As the operator's are written, and as the chart writes it.
        let text = text.replace("namespace: mail\n", &here);
        let text = text.replace("namespace: \"mail\"\n", &here);
        let objects = text
            .split("---\n")
            .skip(1)
            .map(|document| serde_saphyr::from_str(document).unwrap());
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, objects.collect())
    });
    files.collect()
}

/// The world's namespace takes only pods of the strictest level, and warns of what would make others.
async fn strictest(world: &World) {
    let levels =
        ["enforce", "warn"].map(|what| format!("pod-security.kubernetes.io/{what}=restricted"));
    let label = [
        "label",
        "namespace",
        &world.namespace,
        &levels[0],
        &levels[1],
    ];
    let (labelled, said) = world.kubectl(&label, "").await;
    assert!(labelled, "{said}");
    // That the level is in force.
    let root = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "root" },
        "spec": { "containers": [{ "name": "root", "image": "root" }] },
    });
    let (created, said) = world.kubectl(&CREATE, &root.to_string()).await;
    assert!(!created && said.contains("violates PodSecurity"), "{said}");
}

const CREATE: [&str; 5] = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];

/// No field of these objects is unknown to the server, and no pod of theirs may more than the strictest level allows. Answers how many
/// pods there were.
async fn is_taken(world: &World, name: &str, objects: &[Value]) -> usize {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string();
    let apply = [
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
    ];
    let (applied, said) = world.kubectl(&apply, &list).await;
    assert!(applied && !said.contains("Warning"), "{name}: {said}");
    let mut pods = 0;
    for object in objects {
        let Some(template) = object.pointer("/spec/template") else {
            continue;
        };
        let mut pod = template.clone();
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"]["name"] = "one".into();
        // A class of the cluster's, which this server has not got.
        pod["spec"]
            .as_object_mut()
            .unwrap()
            .remove("priorityClassName");
        // What its StatefulSet adds.
        for claim in object
            .pointer("/spec/volumeClaimTemplates")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let volume = json!({ "name": claim["metadata"]["name"], "persistentVolumeClaim": { "claimName": "one" } });
            pod["spec"]["volumes"].as_array_mut().unwrap().push(volume);
        }
        let (created, said) = world.kubectl(&CREATE, &pod.to_string()).await;
        assert!(created, "{name}: {}: {said}", object["metadata"]["name"]);
        pods += 1;
    }
    pods
}

/// It takes no field that it does not know, and no pod that may more than the strictest of its levels allows.
#[tokio::test]
async fn every_object_is_taken_by_the_server_and_every_pod_by_the_strictest_level() {
    let Some(world) = World::new().await else {
        return;
    };
    strictest(&world).await;
    let snapshots = snapshots(&world, "src/desired/golden");
    assert!(snapshots.len() >= 4);
    let mut pods = 0;
    for (name, objects) in snapshots {
        assert!(objects.len() > 15, "{name}");
        pods += is_taken(&world, &name, &objects).await;
    }
    assert_eq!(pods, 7 + 4 + 6 + 7);
}

/// The same of the chart `mailbell`, in each of its modes.
#[tokio::test]
async fn what_the_chart_makes_is_taken_by_the_server() {
    let Some(world) = World::new().await else {
        return;
    };
    strictest(&world).await;
    let modes = snapshots(&world, "tests/golden");
    assert!(modes.len() >= 8);
    for (name, objects) in modes {
        assert!(objects.len() > 5, "{name}");
        assert_eq!(is_taken(&world, &name, &objects).await, 1, "{name}");
    }
}
