//! What is being changed and gets no further, for which the API server keeps the times.

use std::time::Duration;

use k8s_openapi::{
    api::apps::v1::StatefulSet, apimachinery::pkg::apis::meta::v1::Time, jiff::SignedDuration,
};
use kube::{ResourceExt as _, api::PostParams};
use serde_json::json;

use crate::{actors::Operator, world::World};

impl World {
    /// The API server says that a set was last written so long ago: a time that nobody changes it lets stand.
    async fn is_older(&self, name: &str, age: Duration) {
        let sets = self.api::<StatefulSet>();
        let mut set = sets.get(name).await.unwrap();
        let age = SignedDuration::try_from(age).unwrap();
        let mut written = set.managed_fields().to_vec();
        for writer in &mut written {
            writer.time = writer.time.as_ref().map(|it| Time(it.0 - age));
        }
        set.metadata.managed_fields = Some(written.clone());
        // A time alone is no change, and would be left as it was.
        set.annotations_mut()
            .insert("example.org/seen".to_owned(), "once".to_owned());
        let params = PostParams {
            field_manager: Some("somebody".to_owned()),
            ..PostParams::default()
        };
        let set = sets.replace(name, &params, &set).await.unwrap();
        let kept = set.managed_fields().iter();
        let kept = kept.filter(|it| it.manager.as_deref() != Some("somebody"));
        assert!(kept.eq(&written));
    }
}

/// Nothing is heard of it, and whoever leads next knows since when it gets no further.
#[tokio::test]
async fn what_gets_no_further_is_told_when_its_ten_minutes_are_over() {
    let Some(world) = World::new().await else {
        return;
    };
    let one = world.with_installation().await;
    let image = "mailbell.dev/away:1";
    world
        .change(json!({ "spec": { "nats": { "managed": { "image": image } } } }))
        .await;
    let rolls = || async {
        let set: StatefulSet = world.there("main-nats").await;
        let pod = set.spec.as_ref()?.template.spec.as_ref()?;
        (pod.containers[0].image.as_deref() == Some(image)).then_some(set)
    };
    let rolls = world.once(rolls, "the other image").await;
    let count = rolls.spec.as_ref().unwrap().replicas;
    let status = json!({ "observedGeneration": rolls.metadata.generation, "replicas": count, "readyReplicas": count,
        "currentRevision": "a", "updateRevision": "b" });
    world.says(&rolls, status).await;
    world
        .until_ready_says("True Changing The NATS servers: ")
        .await;
    one.stop().await;
    world.is_older("main-nats", Duration::from_secs(590)).await;
    let two = Operator::start(&world, "two");
    // Much less than ten minutes later.
    world
        .until_ready_says("True Impaired The NATS servers: main-nats does not get on")
        .await;
    world.set_is_ready("main-nats").await;
    world.until_ready_says("True Running").await;
    two.stop().await;
}
