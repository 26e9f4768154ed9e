//! The operator dies, or is not there for a while.

use crate::{
    install::NAME,
    pods::{OPERATOR, Pod},
    world::{TAG, World},
};

/// The kubelet starts what was killed three times after 20 s, and the lease lasts 15: mostly the other one is quicker then.
const KILLS: usize = 3;

/// Its process is killed, and each time that it is started anew. What it would have put right, the other one does.
pub(super) async fn leader_is_killed(world: &World) {
    let first = world.leader().await;
    world
        .under_load(
            "the operator that leads is killed until another does",
            async {
                world.kill_each_life(&first, KILLS).await;
                // Nobody leads now.
                let scale = format!("scale statefulset {NAME}-watcher --replicas=1");
                world.kubectl(&scale).await;
                world
                    .until("the other one leads", async || {
                        let is_led = world.leader().await != first;
                        if !is_led {
                            world.kill_operator(&first).await;
                        }
                        is_led
                    })
                    .await;
                world.wait_running(TAG).await;
            },
        )
        .await;
}

/// Nobody looks after the installation, and pods of it die.
pub(super) async fn operator_is_away(world: &World) {
    let budget = format!("poddisruptionbudget/{NAME}-gateway");
    let budgets = "get poddisruptionbudgets -o name";
    let has_budget = async || {
        world
            .kubectl(budgets)
            .await
            .contains(&format!("{NAME}-gateway"))
    };
    world
        .under_load(
            "no operator is there, a watcher and a gateway are killed",
            async {
                world
                    .kubectl(&format!("scale deployment {OPERATOR} --replicas=0"))
                    .await;
                world
                    .until("no operator is left", async || {
                        world.operators().await.is_empty()
                    })
                    .await;
                world.kubectl(&format!("delete {budget}")).await;
                let mut before = world.lives().await;
                for part in ["watcher", "gateway"] {
                    let pod = world.busiest(part).await;
                    before.remove(&pod.life());
                    world.delete_pod(&pod).await;
                }
                let all = before.len() + 2;
                world
                    .until("others stand in for them", async || {
                        let pods = world.pods().await;
                        pods.len() == all && pods.iter().all(Pod::is_ready)
                    })
                    .await;
                world.wait_told().await;
                assert!(before.is_subset(&world.lives().await), "the others stay");
                assert!(!has_budget().await, "nobody puts anything right");
                world
                    .kubectl(&format!("scale deployment {OPERATOR} --replicas=2"))
                    .await;
                world.until("what was missing is there", has_budget).await;
                world.wait_running(TAG).await;
            },
        )
        .await;
}

impl World {
    /// The name of the pod that has the operator's lease.
    async fn leader(&self) -> String {
        let lease = format!("get lease {OPERATOR} -o jsonpath={{.spec.holderIdentity}}");
        self.kubectl(&lease).await
    }

    /// Kills the process of this operator so often, each time once it was started anew.
    async fn kill_each_life(&self, operator: &str, times: usize) {
        let mut killed = 0;
        self.until("it is killed each time that it runs", async || {
            killed += usize::from(self.kill_operator(operator).await);
            killed == times
        })
        .await;
    }

    /// Whether its process was there to be killed.
    async fn kill_operator(&self, name: &str) -> bool {
        let operators = self.operators().await;
        let pod = operators.iter().find(|pod| pod.name() == name);
        pod.unwrap().kill(&self.cluster)
    }
}
