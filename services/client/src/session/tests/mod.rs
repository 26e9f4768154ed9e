mod app;
mod model;
mod rules;
