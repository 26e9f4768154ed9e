//! The charts, by Helm.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use mailbell_operator::crds;

use crate::world::World;

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/mailbell-crds");

/// Their objects are the users' accounts.
#[tokio::test]
async fn the_definitions_stay_when_their_chart_is_uninstalled() {
    // Its own: definitions are the whole server's.
    let Some(world) = World::alone().await else {
        return;
    };
    let (linted, said) = world.helm(&["lint", "--strict", CRDS]).await;
    assert!(linted, "{said}");
    let (installed, said) = world.helm(&["install", "crds", CRDS]).await;
    assert!(installed, "{said}");
    let api: Api<CustomResourceDefinition> = Api::all(world.client.clone());
    let stored = async || api.list(&Default::default()).await.unwrap().items;
    let names = |all: Vec<CustomResourceDefinition>| -> Vec<Option<String>> {
        let mut names: Vec<_> = all.into_iter().map(|it| it.metadata.name).collect();
        names.sort();
        names
    };
    let expected = names(crds::definitions());
    assert_eq!(names(stored().await), expected);
    let (upgraded, said) = world.helm(&["upgrade", "crds", CRDS]).await;
    assert!(upgraded, "{said}");
    let (uninstalled, said) = world.helm(&["uninstall", "crds"]).await;
    assert!(uninstalled && said.contains("kept"), "{said}");
    assert_eq!(names(stored().await), expected);
}
