mod app;
mod listings;
mod model;
mod rules;
mod support;
