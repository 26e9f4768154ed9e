//! What an installation is made of, as the snapshots in `src/desired/golden` have it, is taken by a real server.

use std::path::Path;

use serde_json::{Value, json};

use crate::world::World;

/// The objects of each snapshot, in the world's namespace.
fn snapshots(world: &World) -> Vec<(String, Vec<Value>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/desired/golden");
    let files = std::fs::read_dir(folder).unwrap().map(|file| {
        let path = file.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace(
            "namespace: mail\n",
            &format!("namespace: {}\n", world.namespace),
        );
        let objects = text
            .split("---\n")
            .skip(1)
            .map(|document| serde_saphyr::from_str(document).unwrap());
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, objects.collect())
    });
    files.collect()
}

/// It takes no field that it does not know, and no pod that may more than the strictest of its levels allows.
#[tokio::test]
async fn every_object_is_taken_by_the_server_and_every_pod_by_the_strictest_level() {
    let Some(world) = World::new().await else {
        return;
    };
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
    let snapshots = snapshots(&world);
    assert!(snapshots.len() >= 3);
    let mut pods = 0;
    for (name, objects) in snapshots {
        // Its definitions are not here: the Gateway API is none of the server's own.
        let own = |object: &&Value| object["kind"] != "GRPCRoute";
        let list: Vec<&Value> = objects.iter().filter(own).collect();
        assert!(list.len() > 15, "{name}");
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": list }).to_string();
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
        for object in &objects {
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
            let create = ["create", "--dry-run=server", "--validate=strict", "-f", "-"];
            let (created, said) = world.kubectl(&create, &pod.to_string()).await;
            assert!(created, "{name}: {}: {said}", object["metadata"]["name"]);
            pods += 1;
        }
    }
    assert_eq!(pods, 7 + 4 + 8);
    // That the level is in force.
    let root = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "root" },
        "spec": { "containers": [{ "name": "root", "image": "root" }] },
    });
    let (created, said) = world
        .kubectl(
            &["create", "--dry-run=server", "-f", "-"],
            &root.to_string(),
        )
        .await;
    assert!(!created && said.contains("violates PodSecurity"), "{said}");
}
