mod model;
use super::*;
