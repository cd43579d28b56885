"""The playground: one static page that shows a canvas as it is denoised, and the small function that serves it."""
