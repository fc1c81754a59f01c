"""Teachers and students: shapes, weights in and out."""
